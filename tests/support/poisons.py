"""Inputs made to do harm: they lie about sizes, inflate, name other files, or ask for more than a machine has.

Each poison is the name of a reader of `hostile_readers`, the bytes to read, and a pattern of the message that refuses them.
"""

import functools
import json
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch

from hostile_readers import coco_files, dataset_files, manifests, weights
from mutations import NESTING
from packed import rich_record
from yolor_ray.data.shards.arrow import SCHEMA, to_table
from yolor_ray.data.shards.dataset import MANIFEST
from yolor_ray.data.shards.records import Record

Poison = tuple[str, Callable[[], bytes], str]
BOMB_BYTES = int(os.environ.get("BOMB_MB", "1")) << 20
"""Bytes that pages inflate to: few in ordinary tests, where the refusal counts."""
ZEROS = max(BOMB_BYTES // 8, 1 << 22)
"""Values of a list that takes no bytes."""
HUGE = 10**12
NESTED = b"[" * NESTING


def _png(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and has a row of pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(3 * width + 1))) + chunk(b"IEND", b"")


# Manifests of datasets.


def _manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[], bytes]:
    """Return a manifest with one change; its hash is made anew by the reader."""

    def make() -> bytes:
        content = json.loads(dataset_files()[MANIFEST])
        change(content)
        return json.dumps(content).encode()

    return make


def _shard(**values: Any) -> Callable[[], bytes]:
    return _manifest(lambda content: content["shards"][0].update(values))


def _content(**values: Any) -> Callable[[], bytes]:
    return _manifest(lambda content: content.update(values))


def _claim_rows(content: dict[str, Any]) -> None:
    """Claim a number of images that no memory holds."""
    first = content["shards"][0]
    content["images"] += HUGE
    first["rows"] += HUGE
    first["row_groups"][0] += HUGE


MANIFESTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "name of another folder": (_shard(name="../part-00000-0123456789ab.parquet"), r"found shard name '\.\./part"),
    "absolute path": (_shard(name="/etc/passwd"), "found shard name '/etc/passwd'"),
    "another bucket": (_shard(name="s3://other/part-00000-0123456789ab.parquet"), "found shard name 's3://other"),
    "control character in a shard's name": (
        _shard(name="part-00000-0123456789ab\n.parquet"),
        r"found shard name 'part-00000-0123456789ab\\n",
    ),
    "control character in a class": (_content(classes=["nothing", "\x1b[31m"]), r"classes with '\\x1b\[31m'"),
    "more rows than memory": (_manifest(_claim_rows), "found row groups of"),
    "rows against row groups": (_shard(rows=7), "found 7 rows and row groups of 6 rows"),
    "images against rows": (_content(images=11), "10 rows in the shards, 11 images"),
    "negative rows": (_shard(row_groups=[-3]), "expected whole numbers from 1"),
    "fraction of a row": (_shard(row_groups=[6.0]), "expected whole numbers from 1"),
    "negative size": (_shard(bytes=-5), "expected whole numbers from 1"),
    "footer larger than the shard": (_shard(footer_bytes=10**9), "found a footer of 1000000000 bytes"),
    "negative count of boxes": (_content(boxes=-1), "counts"),
    "boxes that are no number": (_content(boxes=float("nan")), "counts"),
    "boxes against their classes": (_content(boxes=9), "9 boxes, and others per class"),
    "nested too deep": (lambda: NESTED, "found a damaged manifest"),
}


# Shards.


def _write(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False, "write_page_checksum": True}
    pq.write_table(table, sink, **{**plain, **options})
    return sink.getvalue().to_pybytes()


def _records(**changes: Any) -> list[Record]:
    """Return the records of a shard, the last one changed."""
    records = [rich_record(index) for index in range(6)]
    objects = {name: value for name, value in changes.items() if hasattr(records[-1].objects, name)}
    others = {name: value for name, value in changes.items() if name not in objects}
    records[-1] = replace(records[-1], objects=replace(records[-1].objects, **objects), **others)
    return records


def _rows(**changes: Any) -> Callable[[], bytes]:
    return lambda: _write(to_table(_records(**changes)))


def _with_column(name: str, values: Callable[[], pa.Array], **options: Any) -> Callable[[], bytes]:
    """Return a shard of one image, with another column."""

    def make() -> bytes:
        table = to_table([rich_record(1)])
        index = SCHEMA.names.index(name)
        return _write(table.set_column(index, SCHEMA.field(index), values()), **options)

    return make


def _repeated_list(kind: pa.DataType, value: Any) -> Callable[[], pa.Array]:
    """Return a column of one row with a list of one value, repeated."""
    return lambda: pa.ListArray.from_arrays(pa.array([0, ZEROS], pa.int32()), pa.repeat(pa.scalar(value, kind), ZEROS))


def _zeros(**options: Any) -> Callable[[], bytes]:
    """Return a shard with an image of zeros."""
    return _with_column("image", lambda: pa.array([bytes(BOMB_BYTES)], pa.binary()), **options)


BOX = np.array([[5, 5, 20, 20]], np.float32)
SHARDS: dict[str, tuple[Callable[[], bytes], str]] = {
    "pages that inflate (zstd)": (_zeros(compression="zstd"), "compressed or with a dictionary"),
    "pages that inflate (gzip)": (_zeros(compression="gzip"), "compressed or with a dictionary"),
    "dictionary": (_with_column("labels", _repeated_list(pa.int64(), 1), use_dictionary=["labels.list.element"]), "with a dictionary"),
    "values of no bits (delta)": (
        _with_column("labels", _repeated_list(pa.int64(), 1), column_encoding={"labels.list.element": "DELTA_BINARY_PACKED"}),
        "found a page that packing does not write",
    ),
    "absent values": (_with_column("labels", _repeated_list(pa.int64(), None)), "the pages inflate"),
    "pages of the second version": (lambda: _write(to_table(_records()), data_page_version="2.0"), "found a page"),
    "other columns": (lambda: _write(to_table(_records()).rename_columns([*SCHEMA.names[:-1], "other"])), "other columns"),
    "box that is no number": (_rows(boxes_xyxy=np.array([[5, np.nan, 20, 20]], np.float32)), "column boxes_xyxy"),
    "box turned round": (_rows(boxes_xyxy=BOX[:, [2, 3, 0, 1]]), "column boxes_xyxy"),
    "box beside the image": (_rows(boxes_xyxy=BOX * 1000), "column boxes_xyxy"),
    "negative width": (_rows(width=-64), "column width and height"),
    "image of 10^18 pixels": (_rows(width=10**9, height=10**9), "column width and height"),
    "class that is none": (_rows(labels=np.array([2])), "column labels: found 2, expected from 0 to 1"),
    "negative class": (_rows(labels=np.array([-1])), "column labels: found -1"),
    "label of the image that is none": (_rows(image_labels=np.array([7])), "column image_labels: found 7"),
    "more classes than boxes": (_rows(labels=np.array([0, 1])), "column labels: found 2"),
    "mask larger than the image": (_rows(masks=(b"m" * 7 + b"0",)), "column masks"),
    "mask that is no text": (_rows(masks=(b"\x00\xff",)), "column masks"),
    "mask without an end": (_rows(masks=(b"ooo",)), "column masks"),
    "keypoints of another number": (_rows(keypoints=np.zeros((1, 5, 3), np.float32)), "column keypoints"),
    "keypoint that is no number": (_rows(keypoints=np.full((1, 3, 3), np.inf, np.float32)), "keypoints"),
    "task that is none": (_rows(tasks=("fly",)), "column tasks"),
}


# Weights.


def _weights_config(**values: Any) -> Callable[[], bytes]:
    return lambda: json.dumps({**json.loads(weights()["config.json"]), **values}).encode()


def _network(**values: Any) -> Callable[[], bytes]:
    def make() -> bytes:
        content = json.loads(weights()["config.json"])
        return json.dumps({**content, "network": {**content["network"], **values}}).encode()

    return make


def _tensors(**tensors: torch.Tensor) -> Callable[[], bytes]:
    return lambda: safetensors.torch.save(safetensors.torch.load(weights()["weights.safetensors"]) | tensors)


def _header(change: Callable[[dict[str, Any]], Any], length: int | None = None) -> Callable[[], bytes]:
    """Return tensors with another header."""

    def make() -> bytes:
        data = weights()["weights.safetensors"]
        size = int.from_bytes(data[:8], "little")
        content = json.loads(data[8 : 8 + size])
        change(content)
        header = json.dumps(content).encode()
        return (length or len(header)).to_bytes(8, "little") + header + data[8 + size :]

    return make


WEIGHTS_CONFIGS: dict[str, tuple[Callable[[], bytes], str]] = {
    "widths of 100 GB": (_network(widths=[80_000, 80_000, 80_000]), r"network\.widths: found \(80000.*as weights\.safetensors has"),
    "a billion blocks": (_network(depths=[1, 10**9, 0]), r"network\.depths: found \(1, 1000000000"),
    "a billion blocks in the neck": (_network(neck_depth=10**9), r"network\.neck_depth: found 1000000000"),
    "a billion pools": (_network(spp_pairs=10**9), r"network\.spp_pairs: found 1000000000"),
    "a billion anchors": (_network(anchors_per_level=10**9), r"network\.anchors_per_level: found 1000000000"),
    "width beyond any number": (_network(widths=[8 * 10**300, 8, 8]), r"network\.widths: found"),
    "width as text": (_network(widths="8 8 8"), r"network\.widths: found '8 8 8'"),
    "stem that is none": (_network(stem="fast"), r"network\.stem: found 'fast'"),
    "input of 10^9 pixels": (_weights_config(image_px=32 * 10**9), "image_px: found 32000000000"),
    "control character in a class": (_weights_config(classes=["cat\x1b]0;", "dog"], thresholds={}), r"classes: found \['cat\\x1b\]0;'"),
    "control character in the name": (_weights_config(name="run\nevent=done"), r"name: found 'run\\nevent=done'"),
    "nested too deep": (lambda: NESTED, "not JSON"),
}
WEIGHTS_TENSORS: dict[str, tuple[Callable[[], bytes], str]] = {
    "header of 2^60 bytes": (_header(lambda header: None, length=1 << 60), "not a safetensors file"),
    "header of 90 MB": (_header(lambda header: None, length=90_000_000), "not a safetensors file"),
    "shape of 10^12 numbers": (_header(lambda header: header["head.anchors"].update(shape=[HUGE])), "not a safetensors file"),
    "negative shape": (_header(lambda header: header["head.anchors"].update(shape=[-2, 3, 2])), "not a safetensors file"),
    "offsets beyond the end": (_header(lambda header: header["head.anchors"].update(data_offsets=[0, HUGE])), "not a safetensors file"),
    "weights that are no number": (
        _tensors(**{"head.anchors": torch.full((2, 3, 2), float("nan"))}),
        "'head.anchors' has values that are not",
    ),
    "control character in a tensor's name": (_tensors(**{"a\x1b[31m": torch.zeros(1)}), r"1 tensors are unknown, first 'a\\x1b\[31m'"),
    "50,000 tensors": (_tensors(**{f"t{number}": torch.zeros(1) for number in range(50_000)}), "tensors, expected at most 10000"),
}


def _published(**entries: Any) -> Callable[[], bytes]:
    """Return a manifest of weights with other entries."""

    def make() -> bytes:
        content = json.loads(manifests(weights())[0])
        content["files"].update(entries)
        return json.dumps(content).encode()

    return make


WEIGHTS_MANIFESTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "file of another folder": (_published(**{"../../etc/passwd": {"bytes": 1, "sha256": ""}}), r"found file name '\.\./\.\./etc/passwd'"),
    "absolute path": (_published(**{"/etc/passwd": {"bytes": 1, "sha256": ""}}), "found file name '/etc/passwd'"),
    "negative size": (_published(**{"config.json": {"bytes": -1, "sha256": ""}}), "found size -1"),
    "infinite size": (_published(**{"config.json": {"bytes": float("inf"), "sha256": ""}}), "found size inf"),
    "size that lies": (_published(**{"config.json": {"bytes": HUGE, "sha256": ""}}), rf"config\.json: found \d+ bytes, expected {HUGE}"),
    "nested too deep": (lambda: b'{"files":' + NESTED, "found no manifest"),
}


# Graphs of exports.


def _external_onnx() -> bytes:
    """Return an ONNX file whose weights are in another file."""
    import onnx

    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[1000], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", "../../etc/passwd"), ("offset", "0"), ("length", "4000")):
        tensor.external_data.add(key=key, value=value)
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1000])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["w"], ["y"])], "g", [], [output], [tensor])
    return onnx.helper.make_model(graph).SerializeToString()


def _entities_xml() -> bytes:
    """Return an OpenVINO file with entities that inflate, and one that names another file."""
    inflating = "".join(f'<!ENTITY e{level} "{f"&e{level - 1};" * 10}">' for level in range(1, 12))
    entities = f'<!ENTITY f SYSTEM "file:///etc/passwd"><!ENTITY e0 "x">{inflating}'
    return f'<?xml version="1.0"?><!DOCTYPE net [{entities}]><net>&e11;&f;</net>'.encode()


GRAPHS: dict[str, tuple[Callable[[], bytes], str]] = {
    "ONNX with data in another file": (_external_onnx, r"found external data in '\.\./\.\./etc/passwd'"),
    "OpenVINO with entities": (_entities_xml, "found a graph that openvino cannot open"),
}


# Annotations and images.


def _coco(change: Callable[[dict[str, Any]], Any]) -> Callable[[], bytes]:
    def make() -> bytes:
        content = json.loads(coco_files()[1])
        change(content)
        return json.dumps(content).encode()

    return make


COCO: dict[str, tuple[Callable[[], bytes], str]] = {
    "control character in a class": (
        _coco(lambda c: c["categories"][0].update(name="dog\x1b[31m")),
        r"found 'dog\\x1b\[31m' among classes",
    ),
    "half a character in a class": (_coco(lambda c: c["categories"][0].update(name="dog\ud800")), r"found 'dog\\ud800' among classes"),
    "nested too deep": (lambda: NESTED, "found no JSON"),
}


def _merging_yaml() -> bytes:
    """Return a data.yaml whose merge keys inflate."""
    levels = [f"k{level}: &k{level}\n  <<: [{', '.join([f'*k{level - 1}'] * 9)}]" for level in range(1, 12)]
    return "\n".join(["k0: &k0 {a: b}", *levels, "train: images/train", "val: images/val", "names: [dog, cat, ant]", ""]).encode()


DATA_YAMLS: dict[str, tuple[Callable[[], bytes], str]] = {
    "merge keys that inflate": (_merging_yaml, ""),
    "nested too deep": (lambda: b"names: " + b"[" * 20_000, "nested too deep|no valid YAML"),
    "the root of the file system": (lambda: b"path: /\ntrain: /\nval: images/val\nnames: [dog, cat, ant]\n", "root of the file system"),
}
IMAGES: dict[str, tuple[Callable[[], bytes], str]] = {
    "PNG of 10^10 pixels": (lambda: _png(100_000, 100_000), "expected at most"),
    "PNG of a row that claims 160 megapixels": (lambda: _png(12_600, 12_600), "which cannot hold so many pixels"),
}
SETTINGS: dict[str, tuple[Callable[[], bytes], str]] = {
    "nested too deep": (lambda: NESTED, "found no JSON"),
    "data set as a number": (lambda: b'{"data": {"train": 5, "val": []}}', "was started with other settings"),
}


@functools.cache
def poisons() -> dict[str, Poison]:
    """Return all poisons by `READER: NAME`."""
    groups = {"manifest": MANIFESTS, "shard": SHARDS, "weights_config": WEIGHTS_CONFIGS, "weights": WEIGHTS_TENSORS}
    groups |= {"weights_manifest": WEIGHTS_MANIFESTS, "graph": GRAPHS, "coco": COCO, "data_yaml": DATA_YAMLS, "image": IMAGES}
    groups |= {"settings": SETTINGS}
    return {f"{reader}: {name}": (reader, make, message) for reader, group in groups.items() for name, (make, message) in group.items()}

"""The readers of files that users give, each with valid inputs, the changes to make to them, and the errors that are documented."""

import contextlib
import functools
import hashlib
import io
import json
import random
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx  # noqa: F401 - before the clock starts
import openvino  # noqa: F401
import torch
from PIL import Image

from exports import write_coco, write_voc, yolo_line
from mutations import mutate_bytes, mutate_json, mutate_text
from packed import pack, rich_record
from yolor_ray.config import NetworkConfig, OptimConfig, PackAutoConfig, PackCocoConfig, PackVocConfig, PackYoloConfig, TrainConfig
from yolor_ray.config.dotted import from_json
from yolor_ray.data.augment.instance_map import instance_map
from yolor_ray.data.images.decode import decode
from yolor_ray.data.shards.dataset import HASH_KEY, MANIFEST, _content_sha256, open_dataset, read_row_group, to_records
from yolor_ray.data.shards.thrift import parse_struct
from yolor_ray.errors import ConfigError, DataError, ImageError, StorageError, SupersededError, UserError, WeightsError
from yolor_ray.inference.engine_choice import choose_engine
from yolor_ray.inference.models import load_model
from yolor_ray.inference.runtimes.graph import graph_config
from yolor_ray.io import manifest
from yolor_ray.model.network import Yolor
from yolor_ray.model.upstream.importer import load_upstream
from yolor_ray.model.weights import WeightsInfo, load_weights, weights_files
from yolor_ray.pack.plan import plan_annotated
from yolor_ray.pack.run import build_dataset
from yolor_ray.pack.splits import plan_splits
from yolor_ray.train.checkpoint.attempts import RunAttempt
from yolor_ray.train.checkpoint.checkpoint import CHECKPOINTS, STATE_FILE, TENSORS_FILE, Progress, resume, take_checkpoint, write_checkpoint
from yolor_ray.train.distributed import DistContext
from yolor_ray.train.learner import Learner
from yolor_ray.train.optim.schedule import Schedule
from yolor_ray.train.settings_lock import RUN_FILE, lock_settings

NETWORK = NetworkConfig(stem="reorg", stem_width=8, widths=(8, 8, 8), depths=(1, 0, 0), neck_depth=0, levels=2)
IMAGES = 4
Files = dict[str, bytes]


@dataclass(frozen=True)
class Reader:
    """A reader of one kind of file."""

    seeds: Callable[[], list[bytes]]
    """Returns valid inputs."""
    read: Callable[[Path, bytes], Any]
    """Reads an input, with an empty folder for files."""
    errors: tuple[type[Exception], ...]
    """Documented errors."""
    mutate: Callable[[bytes, random.Random], bytes]
    """Changes an input."""


def write_files(folder: Path, files: Files) -> None:
    """Write files into a folder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def folder_files(folder: Path) -> Files:
    """Return the files in a folder by relative name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# Images.


def encoded_images() -> list[bytes]:
    """Return small images of every format."""
    pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    images = []
    for name, options in (
        *(("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("WEBP", {"lossless": True}), ("BMP", {})),
        *(("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "tiff_deflate"})),
    ):
        for mode in ("RGB", "L", "P"):
            exif = Image.Exif()
            exif[0x0112] = 6
            stream = io.BytesIO()
            converted = Image.fromarray(pixels).convert(mode if name != "JPEG" or mode != "P" else "CMYK")
            converted.save(stream, name, **options, **({} if name == "BMP" else {"exif": exif}))
            images.append(stream.getvalue())
    return images


def read_image(_: Path, data: bytes) -> None:
    """Decode an image to bytes in RGB."""
    pixels = decode(data)
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


# Annotations: a folder is packed, and the dataset that results is read.


@functools.cache
def small_image() -> bytes:
    """Return an image of 64 x 48 pixels."""
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write_images(folder: Path) -> None:
    """Write a few images."""
    write_files(folder, {f"{number:03d}.png": small_image() + bytes([number]) for number in range(IMAGES)})


def build(plan: Any) -> None:
    """Pack a plan in this process, and read the dataset."""
    build_dataset(plan, parallel=False)
    read_records(Path(plan.output))


def read_records(url: Path) -> None:
    """Read all of a dataset as training does: records and instance maps."""
    dataset = open_dataset(str(url))
    for group in dataset.row_groups:
        read_row_group(dataset, group, ["boxes_xyxy", "labels", "crowd", "tasks"])
        for record in to_records(read_row_group(dataset, group)):
            objects = record.objects
            assert np.isfinite(objects.boxes_xyxy).all() and (objects.boxes_xyxy[:, :2] < objects.boxes_xyxy[:, 2:]).all()
            assert all(0 <= label < len(dataset.classes) for label in objects.labels.tolist())
            assert all(0 <= label < len(dataset.image_classes) for label in record.image_labels.tolist())
            assert record.width > 0 and record.height > 0
            counts = {len(values) for values in (objects.boxes_xyxy, objects.labels, objects.crowd, objects.areas)}
            counts |= {len(values) for values in (objects.masks, objects.keypoints, objects.identities) if values is not None}
            assert len(counts) == 1
            if objects.masks:
                instance_map([mask for mask in objects.masks if mask], record.width, record.height, (16, 16))


def coco_files() -> list[bytes]:
    """Return COCO annotations of boxes, and of masks, keypoints, labels and identities."""
    with tempfile.TemporaryDirectory() as folder:
        write_coco(Path(folder) / "boxes.json", range(IMAGES))
        plain = json.loads((Path(folder) / "boxes.json").read_bytes())
    rich = json.loads(json.dumps(plain))
    rich["categories"] = [{**entry, "keypoints": ["a", "b"], "skeleton": [[1, 2]]} for entry in rich["categories"]]
    for index, entry in enumerate(rich["annotations"]):
        x, y, width, height = entry["bbox"]
        polygon = [[x, y, x + width, y, x + width, y + height]]
        runs = {"size": [48, 64], "counts": [48 * 5, 40, 48 * 64 - 48 * 5 - 40]}
        entry |= {"segmentation": runs if index % 3 == 0 else polygon, "keypoints": [x, y, 2, x + 1, y + 1, 1], "identity": index}
    for index, entry in enumerate(rich["images"]):
        entry |= {"labels": ["sunny"], "camera": index}
    return [json.dumps(content).encode() for content in (plain, rich)]


def read_coco_folder(folder: Path, data: bytes) -> None:
    """Pack images with COCO annotations."""
    write_images(folder / "images")
    write_files(folder, {"annotations.json": data})
    url = str(folder / "annotations.json")
    build(plan_annotated(PackCocoConfig(output=str(folder / "packed"), images=str(folder / "images"), annotations=url)))


def voc_files() -> list[bytes]:
    """Return VOC annotations."""
    with tempfile.TemporaryDirectory() as folder:
        write_voc(Path(folder), range(IMAGES - 1))
        files = list(folder_files(Path(folder)).values())
    shapes = b"""<annotation><filename>000.png</filename><size><width>64</width><height>48</height></size>
<object><name>dog</name><difficult>0</difficult><polygon><x1>5</x1><y1>5</y1><x2>20</x2><y2>5</y2><x3>9</x3><y3>20</y3></polygon></object>
<object><name>cat</name><robndbox><cx>20</cx><cy>20</cy><w>10</w><h>5</h><angle>0.5</angle></robndbox></object></annotation>"""
    return [*files, shapes]


def read_voc_folder(folder: Path, data: bytes) -> None:
    """Pack images with VOC annotations, of which the first file is the input."""
    write_images(folder / "images")
    write_voc(folder / "annotations", range(1, IMAGES))
    write_files(folder / "annotations", {"000.xml": data})
    urls = {"images": str(folder / "images"), "annotations": str(folder / "annotations")}
    build(plan_annotated(PackVocConfig(output=str(folder / "packed"), **urls)))


def label_files() -> list[bytes]:
    """Return YOLO labels: boxes, polygons and keypoints."""
    boxes = yolo_line(0, (5, 5, 20, 20)) + "\n" + yolo_line(1, (8, 9, 40, 40)) + "\n"
    polygons = "0 0.1 0.1 0.4 0.1 0.4 0.4 0.1 0.4\n2 0.5 0.5 0.9 0.5 0.7 0.9\n"
    return [text.encode() for text in (boxes, polygons, boxes + polygons, "")]


def read_labels(folder: Path, data: bytes) -> None:
    """Pack images with YOLO labels, of which the first file is the input."""
    write_images(folder / "images")
    boxes = f"{yolo_line(0, (5, 5, 20, 20))}\n".encode()
    write_files(folder / "labels", {f"{number:03d}.txt": boxes for number in range(1, IMAGES)} | {"000.txt": data})
    write_files(folder, {"names.txt": b"dog\ncat\nant\n"})
    urls = {"images": str(folder / "images"), "annotations": str(folder / "labels"), "names": str(folder / "names.txt")}
    build(plan_annotated(PackYoloConfig(output=str(folder / "packed"), **urls)))


def data_yamls() -> list[bytes]:
    """Return the data.yaml of detection and pose."""
    plain = "path: .\ntrain: images/train\nval: images/val\nnc: 3\nnames: [dog, cat, ant]\n"
    pose = "train: images/train\nval: [images/val]\nnames:\n  0: dog\n  1: cat\n  2: ant\nkpt_shape: [2, 3]\nflip_idx: [1, 0]\n"
    return [plain.encode(), pose.encode()]


def read_data_yaml(folder: Path, data: bytes) -> None:
    """Pack all splits of a YOLO dataset, whose data.yaml is the input."""
    boxes = f"{yolo_line(0, (5, 5, 20, 20))}\n".encode()
    for split in ("train", "val"):
        write_images(folder / "set" / "images" / split)
        write_files(folder / "set" / "labels" / split, {f"{number:03d}.txt": boxes for number in range(IMAGES)})
    write_files(folder / "set", {"data.yaml": data})
    for plan in plan_splits(PackAutoConfig(output=str(folder / "packed"), folder=str(folder / "set"))).values():
        build(plan)


# Datasets.


@functools.cache
def dataset_files() -> Files:
    """Return the files of a dataset with all tasks."""
    with tempfile.TemporaryDirectory() as folder:
        names = {"image_classes": ("tall", "wide"), "keypoint_names": ("first", "last", "tail")}
        pack(folder, [[rich_record(index) for index in indices] for indices in (range(6), range(6, 10))], **names)
        return folder_files(Path(folder))


def seal_dataset(content: dict[str, Any]) -> bytes:
    """Return a manifest as an attacker writes it: with the hash of its own content."""
    return json.dumps({**content, HASH_KEY: _content_sha256(content)}).encode()


def read_manifest(folder: Path, data: bytes) -> None:
    """Read a dataset whose manifest is the input, with a hash that is right."""
    try:
        content = json.loads(data)
        sealed = seal_dataset(content) if isinstance(content, dict) else data
    except (ValueError, RecursionError):
        sealed = data
    write_files(folder, dataset_files() | {MANIFEST: sealed})
    read_records(folder)


def read_shard(folder: Path, data: bytes) -> None:
    """Read a dataset whose first shard is the input, with a manifest that has the shard's hashes."""
    files = dataset_files()
    content = json.loads(files[MANIFEST])
    first = content["shards"][0]
    sha256 = hashlib.sha256(data).hexdigest()
    footer_bytes = min(int.from_bytes(data[-8:-4], "little") + 8, len(data))
    described = {"name": f"part-00000-{sha256[:12]}.parquet", "bytes": len(data), "sha256": sha256, "footer_bytes": footer_bytes}
    described |= {"footer_sha256": hashlib.sha256(data[len(data) - footer_bytes :]).hexdigest()}
    try:
        groups = parse_struct(memoryview(data), len(data) - footer_bytes)[0][4]
        chunks = [[(column[3][9], column[3][9] + column[3][7]) for column in group[1]] for group in groups]
        ranges = [(min(start for start, _ in chunk), max(end for _, end in chunk)) for chunk in chunks]
        described |= {"rows": sum(group[3] for group in groups), "row_groups": [group[3] for group in groups]}
        described |= {"row_group_sha256": [hashlib.sha256(data[max(start, 0) : max(end, 0)]).hexdigest() for start, end in ranges]}
    except (ValueError, LookupError, TypeError):
        described |= {"row_group_sha256": [hashlib.sha256(data[4 : len(data) - footer_bytes]).hexdigest()]}
    content["shards"][0] = first | described
    content["images"] = sum(sum(shard["row_groups"]) for shard in content["shards"])
    names = (content[name] for name in ("classes", "image_classes", "keypoint_names"))
    digest = [[shard["sha256"] for shard in content["shards"]], *names]
    content["digest"] = hashlib.sha256(json.dumps(digest).encode()).hexdigest()
    write_files(folder, files | {described["name"]: data, MANIFEST: seal_dataset(content)})
    read_records(folder)


def shards() -> list[bytes]:
    """Return a shard."""
    return [next(data for name, data in dataset_files().items() if name.startswith("part-00000"))]


def mutate_shard(data: bytes, rng: random.Random) -> bytes:
    """Change bytes, above all of the footer and of the pages, which begin after the images."""
    if rng.random() < 0.4:
        return mutate_bytes(data, rng)
    start = rng.choice((len(data) - 8 - int.from_bytes(data[-8:-4], "little"), data.rfind(b"\x89PNG")))
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        changed[rng.randrange(start, len(data))] = rng.choice((rng.randrange(256), 0, 0xFF, 0x7F, 0x15))
    return bytes(changed)


# Weights.


@functools.cache
def weights() -> Files:
    """Return the files of weights."""
    torch.manual_seed(0)
    network = Yolor(NETWORK, 2, torch.full((2, 3, 2), 10.0)).eval()
    return weights_files(network, WeightsInfo("tiny", ("cat", "dog"), 64, {"AP": 0.5}, thresholds={"cat": 0.5}))


def read_weights(changed: str) -> Callable[[Path, bytes], None]:
    """Return a reader of weights of which one file is the input, with a manifest that has its hash."""

    def read(folder: Path, data: bytes) -> None:
        if changed == manifest.MANIFEST:
            manifest.publish(str(folder), weights())
            write_files(folder, {changed: data})
        else:
            manifest.publish(str(folder), weights() | {changed: data})
        network, info = load_weights(str(folder))
        assert len(info.classes) == network.classes

    return read


def read_graph(folder: Path, data: bytes) -> None:
    """Run an export whose graph is the input; the file itself is refused as weights."""
    files = {"model.xml": data, "model.bin": b""} if data.startswith(b"<") else {"model.onnx": data}
    network = Yolor(NETWORK, 2, torch.full((2, 3, 2), 10.0)).eval()
    config = graph_config(network, WeightsInfo("tiny", ("cat", "dog"), 64))
    manifest.publish(str(folder), {**files, "config.json": json.dumps(config).encode()})
    with contextlib.suppress(*WEIGHTS_ERRORS):
        load_weights(str(folder / next(iter(files))))
    choose_engine(*load_model(str(folder)))


def manifests(files: Files) -> list[bytes]:
    """Return the manifest of files."""
    with tempfile.TemporaryDirectory() as folder:
        manifest.publish(folder, files)
        return [(Path(folder) / manifest.MANIFEST).read_bytes()]


def mutate_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Change the header as JSON, with its length, or bytes."""
    if rng.random() < 0.4:
        return mutate_bytes(data[:2000], rng) + data[2000:] if rng.random() < 0.7 else mutate_bytes(data, rng)
    length = int.from_bytes(data[:8], "little")
    header = mutate_json(data[8 : 8 + length], rng)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def upstream_files() -> list[bytes]:
    """Return a checkpoint of torch, and one of darknet with few layers."""
    stream = io.BytesIO()
    network = Yolor(NETWORK, 2, torch.full((2, 3, 2), 10.0))
    torch.save({"model": network.state_dict(), "epoch": 3}, stream)
    darknet = np.array([0, 2, 5, 0, 0], np.int32).tobytes() + np.zeros(5000, np.float32).tobytes()
    return [stream.getvalue(), darknet]


def read_upstream(folder: Path, data: bytes) -> None:
    """Import an upstream file."""
    write_files(folder, {"last.pt": data})
    load_upstream(str(folder / "last.pt"))


# Settings and checkpoints.


def settings() -> list[bytes]:
    """Return the settings of a run."""
    return [json.dumps(asdict(TrainConfig())).encode()]


def read_settings(folder: Path, data: bytes) -> None:
    """Read the settings of a run as `--config` does, and as a resumed run does."""
    write_files(folder, {RUN_FILE: data})
    with contextlib.suppress(ConfigError):
        from_json(str(folder / RUN_FILE), data)
    lock_settings(str(folder), RUN_FILE, asdict(TrainConfig()), mutable=(), defaults=asdict(TrainConfig()))


@functools.cache
def learner() -> Learner:
    """Return a learner of a tiny network."""
    torch.manual_seed(0)
    network = Yolor(NETWORK, 2, torch.full((2, 3, 2), 10.0))
    config = TrainConfig(network=NETWORK, optim=OptimConfig(epochs=9))
    return Learner(network, config, Schedule(config.optim, 10), network)


def progress() -> Progress:
    """Return a position in an epoch."""
    return Progress("digest", epoch=1, seen=np.array([True, False, True]), rows=[{"epoch": 1, "loss": 0.5}], best="best/000001-0001")


@functools.cache
def checkpoint_files() -> Files:
    """Return the files of a checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(folder, take_checkpoint(learner(), progress()), 1)
        [name] = (Path(folder) / CHECKPOINTS).iterdir()
        return {name: data for name, data in folder_files(name).items() if name != manifest.MANIFEST}


def read_checkpoint(changed: str) -> Callable[[Path, bytes], None]:
    """Return a reader of a run whose newest checkpoint has the input as one file; the checkpoint before is whole."""

    def read(folder: Path, data: bytes) -> None:
        older, newer = (str(folder / CHECKPOINTS / name) for name in ("000000003-0001", "000000007-0001"))
        manifest.publish(older, checkpoint_files())
        if changed == manifest.MANIFEST:
            manifest.publish(newer, checkpoint_files())
            write_files(Path(newer), {changed: data})
        else:
            manifest.publish(newer, checkpoint_files() | {changed: data})
        resumed = resume(str(folder), learner(), progress(), DistContext(0, 1, torch.device("cpu")))
        assert isinstance(resumed.epoch, int) and resumed.seen.shape == (3,)

    return read


def attempts() -> list[bytes]:
    """Return the list of attempts."""
    with tempfile.TemporaryDirectory() as folder:
        RunAttempt(folder, 1, "")
        RunAttempt(folder, 2, "a node died")
        return [(Path(folder) / "attempts.jsonl").read_bytes()]


def read_attempt_log(folder: Path, data: bytes) -> None:
    """Begin an attempt after those in the input."""
    write_files(folder, {"attempts.jsonl": data})
    RunAttempt(str(folder), 1, "").record_step(1)


def heartbeats() -> list[bytes]:
    """Return a heartbeat."""
    return [json.dumps({"attempt": 2, "step": 7, "at": 1e9}).encode()]


def read_heartbeat(folder: Path, data: bytes) -> None:
    """Begin an attempt after one with the input as its heartbeat."""
    write_files(folder, {"attempts.jsonl": attempts()[0], "heartbeat.json": data})
    RunAttempt(str(folder), 1, "").record_step(1)


DATASET_ERRORS = (DataError, StorageError)
WEIGHTS_ERRORS = (WeightsError, StorageError)
READERS = {
    "image": Reader(encoded_images, read_image, (ImageError,), mutate_bytes),
    "coco": Reader(coco_files, read_coco_folder, DATASET_ERRORS, mutate_json),
    "voc": Reader(voc_files, read_voc_folder, DATASET_ERRORS, mutate_text),
    "yolo": Reader(label_files, read_labels, DATASET_ERRORS, mutate_text),
    "data_yaml": Reader(data_yamls, read_data_yaml, DATASET_ERRORS, mutate_text),
    "manifest": Reader(lambda: [dataset_files()[MANIFEST]], read_manifest, DATASET_ERRORS, mutate_json),
    "shard": Reader(shards, read_shard, DATASET_ERRORS, mutate_shard),
    "weights": Reader(lambda: [weights()["weights.safetensors"]], read_weights("weights.safetensors"), WEIGHTS_ERRORS, mutate_safetensors),
    "weights_config": Reader(lambda: [weights()["config.json"]], read_weights("config.json"), WEIGHTS_ERRORS, mutate_json),
    "weights_manifest": Reader(lambda: manifests(weights()), read_weights(manifest.MANIFEST), WEIGHTS_ERRORS, mutate_json),
    "graph": Reader(lambda: [b"<net/>"], read_graph, WEIGHTS_ERRORS, mutate_bytes),
    "upstream": Reader(upstream_files, read_upstream, WEIGHTS_ERRORS, mutate_bytes),
    "settings": Reader(settings, read_settings, (UserError,), mutate_json),
    "checkpoint": Reader(lambda: [checkpoint_files()[TENSORS_FILE]], read_checkpoint(TENSORS_FILE), WEIGHTS_ERRORS, mutate_safetensors),
    "checkpoint_state": Reader(lambda: [checkpoint_files()[STATE_FILE]], read_checkpoint(STATE_FILE), WEIGHTS_ERRORS, mutate_json),
    "checkpoint_manifest": Reader(lambda: manifests(checkpoint_files()), read_checkpoint(manifest.MANIFEST), WEIGHTS_ERRORS, mutate_json),
    "attempts": Reader(attempts, read_attempt_log, (StorageError, SupersededError), mutate_text),
    "heartbeat": Reader(heartbeats, read_heartbeat, (StorageError,), mutate_json),
}

"""Exports of small networks, as `yolor-ray export` writes them, and changes to their files."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from yolor_ray.inference.runtimes.onnx_runtime import onnx_files
from yolor_ray.inference.runtimes.openvino_runtime import openvino_files
from yolor_ray.io import manifest
from yolor_ray.io.weights_url import CONFIG_FILE, ONNX_FILE
from yolor_ray.model.fuse import fuse, is_fused
from yolor_ray.model.weights import load_weights

WRITERS = {"onnx": onnx_files, "openvino": openvino_files}
ENGINES = {"onnx": "onnxruntime", "openvino": "openvino"}


def export_weights(weights: str, folder: str, format_name: str) -> str:
    """Publish the export of weights without a check of its predictions, and return its folder."""
    network, info = load_weights(weights)
    manifest.publish(folder, WRITERS[format_name](network if is_fused(network) else fuse(network), info))
    return folder


def republish(folder: str, changes: Mapping[str, bytes | None]) -> None:
    """Replace files of an export, or drop those of None, with a manifest that fits."""
    files = manifest.read_published(folder) | changes
    manifest.publish(folder, {name: data for name, data in files.items() if data is not None})


def change_config(folder: str, **values: Any) -> None:
    """Replace values in `config.json`, or drop those of None."""
    config = json.loads(manifest.read_published(folder)[CONFIG_FILE]) | values
    republish(folder, {CONFIG_FILE: json.dumps({name: value for name, value in config.items() if value is not None}).encode()})


def change_onnx(folder: str, change: Callable[[Any], object], **further: bytes) -> None:
    """Change the message of the ONNX file in place."""
    import onnx

    model = onnx.load_from_string(manifest.read_published(folder)[ONNX_FILE])
    change(model)
    republish(folder, {ONNX_FILE: model.SerializeToString(), **further})

"""Export a network: fold its constants away, write it in a format, and publish it only if it still predicts the same."""

import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from yolor_ray import storage
from yolor_ray.config import Export
from yolor_ray.data.shards import open_dataset
from yolor_ray.errors import ConfigError, WeightsError
from yolor_ray.evaluate.parity import Parity, compare
from yolor_ray.model import graph
from yolor_ray.model.fuse import fuse, is_fused
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo, load_weights, weights_files
from yolor_ray.runtime.evaluate import packed

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Largest `max_error` that is published: of scores, and of box corners as fractions of the input's side."""

Files = Mapping[str, bytes]


def export(config: Export) -> dict[str, Any]:
    """Publish the fused network and return `output`, `format`, `max_error`, its parts, and `parameters`.

    Scores and boxes of what was written, read back, are compared with those of the weights as they were found.

    Raises:
        ConfigError: a package for the format is absent, or a setting does not fit the weights.
        WeightsError: the predictions differ by more than `TOLERANCE`; nothing is published.
    """
    _check(config)
    network, info = load_weights(config.weights)
    info = replace(info, image_px=_image_px(config, network, info))
    fused = _fused(config, network)
    write, read = FORMATS[config.format]
    files = write(fused, info)
    with packed(config.data) as data_url:
        found = compare(network, fused, read(files), open_dataset(data_url), image_px=info.image_px, images=config.check_images)
    _judge(config, found)
    storage.publish(config.output, files)
    return {
        "output": config.output,
        "format": config.format,
        "max_error": found.max_error,
        "score_error": found.score_error,
        "box_error_px": found.box_error_px,
        "raw_error": found.raw_error,
        "images": found.images,
        "image_px": found.image_px,
        "parameters": sum(tensor.numel() for tensor in fused.parameters()),
    }


def _check(config: Export) -> None:
    """Refuse before any work what cannot end well."""
    if storage.absolute(config.output).rstrip("/") == storage.absolute(config.weights).rstrip("/"):
        raise ConfigError(f"output: found the folder of the weights, {config.output}, expected another one")
    if config.format in graph.PACKAGES:
        graph.require_packages(config.format)


def _image_px(config: Export, network: Yolor, info: WeightsInfo) -> int:
    image_px, stride = config.image_px or info.image_px, network.config.strides[-1]
    if image_px % stride:
        raise ConfigError(f"image_px: found {image_px}, expected a multiple of the coarsest stride of {config.weights}, {stride}")
    return image_px


def _fused(config: Export, network: Yolor) -> Yolor:
    fused = network if is_fused(network) else fuse(network)
    if not is_fused(fused):
        raise WeightsError(f"{config.weights}: found batch norm or implicit tensors after fusing, expected none")
    return fused


def _judge(config: Export, found: Parity) -> None:
    """Log the differences; raise WeightsError if they are too large or not numbers."""
    logger.info(
        "event=parity images=%d max_error=%.3g score_error=%.3g box_error_px=%.3g raw_error=%.3g tolerance=%g",
        *(found.images, found.max_error, found.score_error, found.box_error_px, found.raw_error, TOLERANCE),
    )
    if not found.max_error <= TOLERANCE:
        raise WeightsError(
            f"{config.weights}: found predictions that differ by {found.max_error:.3g} after the export to {config.format}, "
            f"expected at most {TOLERANCE:g} (scores by {found.score_error:.3g}, boxes by {found.box_error_px:.3g} px "
            f"on {found.images} images of {config.data}); nothing was written to {config.output}"
        )


def _safetensors_predictor(files: Files) -> graph.Predictor:
    """Return what the weights folder predicts once it is read like any other."""
    with tempfile.TemporaryDirectory(prefix="yolor_ray_export_") as folder:
        storage.publish(folder, files)
        network, _ = load_weights(folder)
    return graph.DecodedYolor(network)


FORMATS: dict[str, tuple[Callable[[Yolor, WeightsInfo], Files], Callable[[Files], graph.Predictor]]] = {
    "safetensors": (weights_files, _safetensors_predictor),
    "onnx": (graph.onnx_files, graph.onnx_predictor),
    "openvino": (graph.openvino_files, graph.openvino_predictor),
}
"""How each format is written, and read back for the check."""

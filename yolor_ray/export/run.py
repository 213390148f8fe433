"""Export a network: fold its constants away, write it in a format, and publish it only if it still predicts the same.

The network comes from a weights folder or from a published checkpoint; the latter stays unfused as safetensors.
"""

import logging
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from yolor_ray.config import ExportConfig
from yolor_ray.data.shards.dataset import open_dataset
from yolor_ray.errors import ConfigError, WeightsError
from yolor_ray.export.upstream import upstream_weights
from yolor_ray.inference import runtimes
from yolor_ray.inference.parity import Parity, compare, rounding
from yolor_ray.io import manifest, storage
from yolor_ray.model.fuse import fuse, is_fused
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo, load_weights, weights_files
from yolor_ray.pack.scenes_url import resolve_dataset_urls

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Largest `max_error` that is published: of scores, and of box corners as fractions of the input's side."""
ROUNDINGS = 4
"""A network may differ by this many times what its own float32 arithmetic loses: both that are compared round, each in its order."""

CHECK_IMAGES = 16
"""Images on which predictions are compared, unless `check_images` says otherwise."""
UPSTREAM_CHECK = 4, 256
"""Images, and largest side in pixels, for an imported network unless the settings say otherwise: seconds for each on a CPU."""

Files = Mapping[str, bytes]


def export(config: ExportConfig) -> dict[str, Any]:
    """Publish the network and return `output`, `format`, `max_error`, its parts, and `parameters`; see `upstream_weights` for more.

    Scores and boxes of what was written, read back, are compared with those of the weights as they were found.

    Raises:
        ConfigError: a package for the format is absent, or a setting does not fit the weights.
        WeightsError: the predictions differ by more than `TOLERANCE`; nothing is published.
    """
    _check(config)
    network, info, about = upstream_weights(config.upstream, config.names) if config.upstream else (*load_weights(config.weights), {})
    info = replace(info, image_px=_fitting(config, network, "image_px", config.image_px or info.image_px))
    images, largest_px = UPSTREAM_CHECK if config.upstream else (CHECK_IMAGES, info.image_px)
    check_px = _fitting(config, network, "check_px", config.check_px or min(info.image_px, largest_px))
    as_it_is = info.fused or (config.upstream and config.format == "safetensors")
    written = network if as_it_is else _fused(config, network)
    write, read = FORMATS[config.format]
    files = write(written, info)
    images = config.check_images or images
    with resolve_dataset_urls(config.data) as data_url:
        dataset = open_dataset(data_url)
        found = compare(network, written, read(files), dataset, image_px=check_px, images=images)
        # What a network's own arithmetic loses takes long to measure, and hardly any network needs it.
        own = 0.0 if found.max_error <= TOLERANCE else rounding(network, dataset, image_px=check_px, images=images)
    _judge(config, found, own)
    manifest.publish(config.output, files)
    return {
        "output": config.output,
        "format": config.format,
        **about,
        "max_error": found.max_error,
        "score_error": found.score_error,
        "box_error_px": found.box_error_px,
        "task_error": found.task_error,
        "raw_error": found.raw_error,
        "images": found.images,
        "image_px": info.image_px,
        "check_px": found.image_px,
        "parameters": sum(tensor.numel() for tensor in written.parameters()),
    }


def _source(config: ExportConfig) -> str:
    return config.upstream or config.weights


def _check(config: ExportConfig) -> None:
    """Refuse before any work what cannot end well."""
    if storage.absolute(config.output).rstrip("/") == storage.absolute(_source(config)).rstrip("/"):
        raise ConfigError(f"output: found the place of the weights, {config.output}, expected another one")
    if config.format in runtimes.PACKAGES:
        runtimes.require_packages(config.format)


def _fitting(config: ExportConfig, network: Yolor, name: str, side: int) -> int:
    """Return a side of the input if the network can take it: it has to be a multiple of the coarsest stride."""
    stride = network.config.strides[-1]
    if side % stride:
        raise ConfigError(f"{name}: found {side}, expected a multiple of the coarsest stride of {_source(config)}, {stride}")
    return side


def _fused(config: ExportConfig, network: Yolor) -> Yolor:
    fused = fuse(network)
    if not is_fused(fused):
        raise WeightsError(f"{_source(config)}: found batch norm or implicit tensors after fusing, expected none")
    return fused


def _judge(config: ExportConfig, found: Parity, own_rounding: float) -> None:
    """Log the differences; raise WeightsError if they are too large or not numbers.

    A network that amplifies rounding errors cannot be held to more than its own float32 arithmetic gives.
    """
    allowed = max(TOLERANCE, ROUNDINGS * own_rounding) if math.isfinite(own_rounding) else TOLERANCE
    logger.info(
        "event=parity images=%d max_error=%.3g score_error=%.3g box_error_px=%.3g raw_error=%.3g own_rounding=%.3g tolerance=%.3g",
        *(found.images, found.max_error, found.score_error, found.box_error_px, found.raw_error, own_rounding, allowed),
    )
    if not found.max_error <= allowed:
        raise WeightsError(
            f"{_source(config)}: found predictions that differ by {found.max_error:.3g} after the export to {config.format}, "
            f"expected at most {allowed:.3g} (scores by {found.score_error:.3g}, boxes by {found.box_error_px:.3g} px "
            f"on {found.images} images of {config.data}); nothing was written to {config.output}"
        )
    if allowed > TOLERANCE:
        logger.warning("event=ill_conditioned own_rounding=%.3g reason='this network amplifies the rounding of float32'", own_rounding)


def _safetensors_predictor(files: Files) -> runtimes.Predictor:
    """Return what the weights folder predicts once it is read like any other."""
    with tempfile.TemporaryDirectory(prefix="yolor_ray_export_") as folder:
        manifest.publish(folder, files)
        network, _ = load_weights(folder)
    return runtimes.DecodedYolor(network)


FORMATS: dict[str, tuple[Callable[[Yolor, WeightsInfo], Files], Callable[[Files], runtimes.Predictor]]] = {
    "safetensors": (weights_files, _safetensors_predictor),
    "onnx": (runtimes.onnx_files, runtimes.onnx_predictor),
    "openvino": (runtimes.openvino_files, runtimes.openvino_predictor),
}
"""How each format is written, and read back for the check."""

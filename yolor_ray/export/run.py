"""Export a network: fuse it, write it in a format, and publish the files only if their predictions agree with the network's.

The network comes from a weights folder or from an upstream checkpoint. An upstream checkpoint stays unfused as safetensors.
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
from yolor_ray.inference.parity import Parity, compare, rounding_error
from yolor_ray.inference.runtimes.graph import PACKAGES, require_packages
from yolor_ray.inference.runtimes.onnx_runtime import onnx_files, onnx_predictor
from yolor_ray.inference.runtimes.openvino_runtime import openvino_files, openvino_predictor
from yolor_ray.inference.runtimes.torch_runtime import DecodedYolor, Predictor
from yolor_ray.io import manifest, storage
from yolor_ray.io.weights_url import CARD_FILE, weights_folder
from yolor_ray.model.fuse import fuse, is_fused
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo, load_weights, weights_files
from yolor_ray.pack.scenes_url import temporary_dataset_urls

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Largest `max_error` of a published export: of scores, and of box corners as fractions of the input's side."""
ROUNDINGS = 4
"""Allowed error in multiples of the network's own float32 rounding error: both compared networks round, each in its own order."""

CHECK_IMAGES = 16
"""Images on which predictions are compared, unless `check_images` is set."""
UPSTREAM_CHECK = 4, 256
"""The same for an upstream checkpoint, and the largest side in pixels: each image takes seconds on a CPU."""

Files = Mapping[str, bytes]


def export(config: ExportConfig) -> dict[str, Any]:
    """Publish the network and return `output`, `format`, `max_error` and its parts, `parameters`, and the keys of `upstream_weights`.

    The written files are read back. Their scores and boxes are compared with those of the given weights.

    Raises:
        ConfigError: a package for the format is absent, or a setting does not fit the weights.
        WeightsError: the predictions differ by more than `TOLERANCE`; nothing is published.
    """
    config = replace(config, weights=weights_folder(config.weights))
    _check_config(config)
    network, info, details = upstream_weights(config.upstream, config.names) if config.upstream else (*load_weights(config.weights), {})
    info = replace(info, image_px=config.image_px or info.image_px)
    check_images, max_check_px = UPSTREAM_CHECK if config.upstream else (CHECK_IMAGES, info.image_px)
    check_px = config.check_px or min(info.image_px, max_check_px)
    for name, side in (("image_px", info.image_px), ("check_px", check_px)):
        network.config.check_image_px(side, name)
    keep_as_is = info.fused or (config.upstream and config.format == "safetensors")
    written = network if keep_as_is else _fuse(config, network)
    write, read = FORMATS[config.format]
    files = write(written, info)
    parity = _check_parity(config, network, written, read(files), check_px, config.check_images or check_images)
    manifest.publish(config.output, {**files, **_card(config)})
    return {
        "output": config.output,
        "format": config.format,
        **details,
        "max_error": parity.max_error,
        "score_error": parity.score_error,
        "box_error_px": parity.box_error_px,
        "task_error": parity.task_error,
        "raw_error": parity.raw_error,
        "images": parity.images,
        "image_px": info.image_px,
        "check_px": parity.image_px,
        "parameters": sum(tensor.numel() for tensor in written.parameters()),
    }


def _card(config: ExportConfig) -> dict[str, bytes]:
    """Return the model card of the weights by name, with a line about the export; nothing where the weights have no card."""
    if config.upstream or CARD_FILE not in storage.list_names(config.weights):
        return {}
    card = storage.read_bytes(storage.join(config.weights, CARD_FILE)).decode(errors="replace")
    return {CARD_FILE: f"{card}\n## Export\n\nFused and written as {config.format}.\n".encode()}


def _source(config: ExportConfig) -> str:
    return config.upstream or config.weights


def _check_config(config: ExportConfig) -> None:
    """Raise ConfigError for settings that cannot succeed, before any work."""
    if storage.absolute(config.output).rstrip("/") == storage.absolute(_source(config)).rstrip("/"):
        raise ConfigError(f"output: found the URL of the weights, {config.output}, expected another URL")
    if config.format in PACKAGES:
        require_packages(f"format {config.format}", PACKAGES[config.format])


def _fuse(config: ExportConfig, network: Yolor) -> Yolor:
    fused = fuse(network)
    if not is_fused(fused):
        raise WeightsError(f"{_source(config)}: found batch norm or implicit tensors after fusing, expected none")
    return fused


def _check_parity(config: ExportConfig, network: Yolor, written: Yolor, predictor: Predictor, check_px: int, images: int) -> Parity:
    """Compare the predictions on images of `config.data`; raise WeightsError if the differences are too large or not numbers."""
    with temporary_dataset_urls(config.data) as data_url:
        dataset = open_dataset(data_url)
        parity = compare(network, written, predictor, dataset, image_px=check_px, images=images)
        # Measuring a network's own rounding error takes long, and hardly any network needs it.
        rounding = 0.0 if parity.max_error <= TOLERANCE else rounding_error(network, dataset, image_px=check_px, images=images)
    _judge(config, parity, rounding)
    return parity


def _judge(config: ExportConfig, parity: Parity, rounding: float) -> None:
    """Log the differences; raise WeightsError if they exceed the tolerance or are not numbers.

    A network that amplifies rounding errors is held only to the accuracy of its own float32 arithmetic.
    """
    allowed = max(TOLERANCE, ROUNDINGS * rounding) if math.isfinite(rounding) else TOLERANCE
    logger.info(
        "event=parity images=%d max_error=%.3g score_error=%.3g box_error_px=%.3g raw_error=%.3g rounding_error=%.3g tolerance=%.3g",
        *(parity.images, parity.max_error, parity.score_error, parity.box_error_px, parity.raw_error, rounding, allowed),
    )
    if not parity.max_error <= allowed:
        raise WeightsError(
            f"{_source(config)}: found predictions that differ by {parity.max_error:.3g} after the export to {config.format}, "
            f"expected at most {allowed:.3g} (scores by {parity.score_error:.3g}, boxes by {parity.box_error_px:.3g} px "
            f"on {parity.images} images of {config.data}); nothing was written to {config.output}"
        )
    if allowed > TOLERANCE:
        logger.warning("event=ill_conditioned rounding_error=%.3g reason='this network amplifies the rounding of float32'", rounding)


def _safetensors_predictor(files: Files) -> Predictor:
    """Make a predictor from the files of a weights folder, read back like any weights folder."""
    with tempfile.TemporaryDirectory(prefix="yolor_ray_export_") as folder:
        manifest.publish(folder, files)
        network, _ = load_weights(folder)
    return DecodedYolor(network)


FORMATS: dict[str, tuple[Callable[[Yolor, WeightsInfo], Files], Callable[[Files], Predictor]]] = {
    "safetensors": (weights_files, _safetensors_predictor),
    "onnx": (onnx_files, onnx_predictor),
    "openvino": (openvino_files, openvino_predictor),
}
"""Writer of each format, and the reader for the check."""

"""Choose the fastest engine for a network on this machine: build every engine, check its predictions, time them in turns.

torch always works. ONNX Runtime and OpenVINO run on the CPU, where their packages are installed.
An export has its own engine, and its predictions were compared when it was written.
Legend: B images, S side of the square network input in pixels, P predictions, K classes.
"""

import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from yolor_ray.config.network import Precision
from yolor_ray.data.images.decode import decode
from yolor_ray.data.images.letterbox import letterbox
from yolor_ray.data.synthetic.scenes import scene
from yolor_ray.errors import ConfigError, check
from yolor_ray.inference.detect import to_input
from yolor_ray.inference.models import Model
from yolor_ray.inference.parity import difference
from yolor_ray.inference.runtimes.export_folder import Export, compile_export, open_export
from yolor_ray.inference.runtimes.onnx_runtime import onnx_files, onnx_predictor
from yolor_ray.inference.runtimes.openvino_runtime import openvino_predictor
from yolor_ray.inference.runtimes.torch_runtime import DecodedYolor, Predictor, torch_predictor
from yolor_ray.inference.timing import median, time_interleaved
from yolor_ray.io.weights_url import check_own_engine
from yolor_ray.model.fuse import fuse, is_fused
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo

logger = logging.getLogger(__name__)

FASTEST = "fastest"
TOLERANCES: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 0.05}
"""Largest error of an engine that may be chosen. In bfloat16 the limit detects a broken network, not a coarse one."""
PRECISIONS: dict[str, Precision] = {"onnxruntime": "float32"}
"""Engines with one fixed precision, whatever precision is allowed."""
CHECK_IMAGES = 2
MAX_ROUNDS, BUDGET_S = 20, 2.0
"""Most rounds of timing the engines, and seconds after which no further round begins."""
PAUSE_S = 0.01
"""Pause before each turn: after a call, torch's threads spin for some milliseconds at full speed."""

Builders = Mapping[str, Callable[[], Predictor]]


@dataclass(frozen=True)
class RunnableModel:
    """A network with the engine that executes it."""

    engine: str
    """torch, onnxruntime or openvino."""
    predict: Predictor
    precision: Precision
    """Precision of the arithmetic."""
    threads: int
    """Compute threads for torch itself. Beside another engine torch has little to do, and its spinning threads would take the cores."""
    error: float
    """Largest difference from the predictions of the given network, or from those of the given export in float32: see
    `parity.Parity.max_error`."""


def choose_engine(
    network: Model, info: WeightsInfo, *, engine: str = FASTEST, precision: Precision = "float32", budget_s: float = BUDGET_S
) -> RunnableModel:
    """Return the network with the fastest engine among those that predict the same on built-in scenes.

    Args:
        network: fused or not, in eval mode on its device; a fused network may get another memory layout in place. Or an export.
        info: description of the weights; `image_px` is the side of the input to run at.
        engine: name of the engine to use whatever its speed, or `fastest`, which for an export is its own engine.
        precision: precision that the engine may compute in; ONNX Runtime stays in float32.
        budget_s: seconds of timing the engines after which no further round begins.

    Raises:
        ConfigError: `image_px` does not fit the network, or the named engine cannot run this network or predicts something else.
        WeightsError: the graph of an export is damaged, or does not fit its metadata.
    """
    if isinstance(network, Export):
        return _run_export(network, info, engine, precision)
    network.config.check_image_px(info.image_px, "image_px")
    pixels = to_input(torch.from_numpy(scene_images(info.image_px, CHECK_IMAGES)), next(network.parameters()).device)
    with torch.inference_mode():
        expected = DecodedYolor(network)(pixels)
    fused = network if is_fused(network) else fuse(network)
    builders = _builders(fused, info, precision)
    check(engine in (FASTEST, *builders), "engine", engine, f"one of {', '.join((FASTEST, *builders))} on this device")
    candidates = builders if engine == FASTEST else {engine: builders[engine]}
    built = [_build(name, build, precision, pixels, expected) for name, build in candidates.items()]
    models = [model for model in built if model and _is_accurate(model, TOLERANCES[precision])]
    if models:
        return _fastest(models, pixels[:1], budget_s)
    if engine not in (FASTEST, "torch"):
        raise ConfigError(
            f"engine: found {engine}, which does not run this network (its log line gives the reason), expected another engine"
        )
    logger.warning("event=no_engine_passed engine=torch precision=float32")
    return RunnableModel("torch", torch_predictor(fused), "float32", torch.get_num_threads(), math.nan)


def _run_export(export: Export, info: WeightsInfo, engine: str, precision: Precision) -> RunnableModel:
    """Return an export with its own engine; its outputs are those of its metadata."""
    check_own_engine(export.url, export.format, engine)
    export.check_image_px(info.image_px, "image_px")
    graph, precision = open_export(export, info), PRECISIONS.get(export.engine, precision)
    pixels = to_input(torch.from_numpy(scene_images(info.image_px, CHECK_IMAGES)), torch.device("cpu"))

    predict, expected = compile_export(export, info, graph, "float32", pixels)
    if precision == "float32":
        return RunnableModel(export.engine, predict, precision, 1, 0.0)
    predict, outputs = compile_export(export, info, graph, precision, pixels)
    error = difference(expected, outputs, info.image_px)
    limit = f"a precision with a difference of at most {TOLERANCES[precision]} from float32; found {error:.3g} for {export.url}"
    check(error <= TOLERANCES[precision], "precision", precision, limit)
    return RunnableModel(export.engine, predict, precision, 1, error)


def scene_images(image_px: int, count: int) -> np.ndarray:
    """Return built-in scenes, (count, S, S, 3) uint8."""
    images = np.empty((count, image_px, image_px, 3), np.uint8)
    for index, out in enumerate(images):
        record = scene(index)
        letterbox(decode(record.image), record.width, record.height, out)
    return images


def _builders(fused: Yolor, info: WeightsInfo, precision: Precision) -> Builders:
    """Return the functions that build a predictor for the network's device, by engine."""
    torch_only = {"torch": lambda: torch_predictor(fused, precision)}
    if next(fused.parameters()).device.type != "cpu":
        return torch_only
    files = functools.cache(lambda: onnx_files(fused, info))
    return {
        **torch_only,
        "onnxruntime": lambda: onnx_predictor(files()),
        "openvino": lambda: openvino_predictor(files(), precision, info.image_px),
    }


def _build(
    engine: str, build: Callable[[], Predictor], precision: Precision, pixels: Tensor, expected: Mapping[str, Tensor]
) -> RunnableModel | None:
    """Build an engine and measure its error; return None if the engine cannot be built or run on this machine."""
    try:
        predict = build()
        outputs = predict(pixels)
    except Exception as error:  # noqa: BLE001 - the engines' own errors share no narrower base
        logger.warning("event=engine_failed engine=%s reason='%s: %s'", engine, type(error).__name__, error)
        return None
    threads = torch.get_num_threads() if engine == "torch" else 1
    return RunnableModel(engine, predict, PRECISIONS.get(engine, precision), threads, difference(expected, outputs, pixels.shape[-1]))


def _is_accurate(model: RunnableModel, tolerance: float) -> bool:
    accurate = model.error <= tolerance
    if not accurate:
        logger.warning("event=engine_refused engine=%s max_error=%.3g tolerance=%g", model.engine, model.error, tolerance)
    return accurate


def _fastest(models: Sequence[RunnableModel], pixels: Tensor, budget_s: float) -> RunnableModel:
    """Return the model with the lowest latency for one image, and log each latency."""
    if len(models) == 1:
        return models[0]
    functions = {model.engine: functools.partial(model.predict, pixels) for model in models}
    rows = time_interleaved(functions, MAX_ROUNDS, budget_s=budget_s, repeat=False, pause_s=PAUSE_S)
    seconds = {name: median(rows, name) for name in functions}
    slowest = max(seconds.values())
    for model in models:
        latency = seconds[model.engine]
        logger.info(
            "event=engine_timed engine=%s ms=%.1f ratio=%.2f max_error=%.2g", model.engine, latency * 1e3, slowest / latency, model.error
        )
    return min(models, key=lambda model: seconds[model.engine])

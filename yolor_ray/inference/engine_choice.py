"""Choose what runs a network fastest on this machine: build every form there is, check it, time them in turns.

torch always works. ONNX Runtime and OpenVINO run on the CPU, where their packages are installed.
Legend: B images, S side of the square network input in pixels, P predictions, K classes.
"""

import functools
import logging
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from yolor_ray.data.images.decode import decode
from yolor_ray.data.images.letterbox import letterbox
from yolor_ray.data.synthetic.scenes import scene
from yolor_ray.errors import ConfigError, check
from yolor_ray.inference import runtimes
from yolor_ray.inference.detect import to_input
from yolor_ray.inference.parity import difference
from yolor_ray.inference.runtimes import Precision, Predictor
from yolor_ray.model.fuse import fuse, is_fused
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo

logger = logging.getLogger(__name__)

FASTEST = "fastest"
TOLERANCES: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 0.05}
"""Largest error of a form that serves. In bfloat16 it tells a broken network from a coarse one, no more."""
PRECISIONS: dict[str, Precision] = {"onnxruntime": "float32"}
"""Engines that compute in one precision, whatever is allowed."""
CHECK_IMAGES = 2
FEWEST_ROUNDS, MOST_ROUNDS, BUDGET_S = 1, 20, 2.0
PAUSE_S = 0.01
"""Before each turn: torch's threads go on waiting for work, at full speed, for some milliseconds after theirs."""

Builders = Mapping[str, Callable[[], Predictor]]


@dataclass(frozen=True)
class RunnableModel:
    """A network ready to run."""

    engine: str
    """What runs it: torch, onnxruntime or openvino."""
    predict: Predictor
    precision: Precision
    """What it computes in."""
    threads: int
    """Compute threads of torch beside it: what torch does for another engine is little, and its waiting threads would take the cores."""
    error: float
    """Largest difference from the network as it was found: see `parity.Parity.max_error`."""


def choose_engine(network: Yolor, info: WeightsInfo, *, engine: str = FASTEST, precision: Precision = "float32") -> RunnableModel:
    """Return the fastest form of a network among those that predict the same on built-in scenes.

    Args:
        network: folded or not, in eval mode on its device; if folded, its weights may be laid out anew in place.
        info: says at which size it is to run.
        engine: the one that is wanted, whatever its speed, or `fastest`.
        precision: what the network may compute in; ONNX Runtime keeps to float32.

    Raises:
        ConfigError: the engine that is wanted does not run this network here, or predicts something else.
    """
    pixels = to_input(torch.from_numpy(scene_images(info.image_px, CHECK_IMAGES)), next(network.parameters()).device)
    with torch.inference_mode():
        expected = runtimes.DecodedYolor(network)(pixels)
    fused = network if is_fused(network) else fuse(network)
    builders = _builders(fused, info, precision)
    check(engine in (FASTEST, *builders), "engine", engine, f"one of {', '.join((FASTEST, *builders))} on this device")
    wanted = builders if engine == FASTEST else {engine: builders[engine]}
    built = [_build(name, build, precision, pixels, expected) for name, build in wanted.items()]
    forms = [form for form in built if form and _sound(form, TOLERANCES[precision])]
    if forms:
        return _fastest(forms, pixels[:1])
    if engine not in (FASTEST, "torch"):
        raise ConfigError(f"engine: found {engine}, which does not run this network (its log line says why), expected another one")
    logger.warning("event=no_engine_passed serving=torch precision=float32")
    return RunnableModel("torch", runtimes.torch_predictor(fused), "float32", torch.get_num_threads(), math.nan)


def scene_images(image_px: int, count: int) -> np.ndarray:
    """Return built-in scenes, (count, S, S, 3) uint8."""
    images = np.empty((count, image_px, image_px, 3), np.uint8)
    for index, out in enumerate(images):
        record = scene(index)
        letterbox(decode(record.image), record.width, record.height, out)
    return images


def _builders(fused: Yolor, info: WeightsInfo, precision: Precision) -> Builders:
    """Return how each form is made on the network's device, by engine."""
    torch_alone = {"torch": lambda: runtimes.torch_predictor(fused, precision)}
    if next(fused.parameters()).device.type != "cpu":
        return torch_alone
    files = functools.cache(lambda: runtimes.onnx_files(fused, info))
    return {
        **torch_alone,
        "onnxruntime": lambda: runtimes.onnx_predictor(files()),
        "openvino": lambda: runtimes.openvino_predictor(files(), precision, info.image_px),
    }


def _build(
    engine: str, build: Callable[[], Predictor], precision: Precision, pixels: Tensor, expected: Mapping[str, Tensor]
) -> RunnableModel | None:
    """Return a form and its error, or nothing if it cannot be built or run here."""
    try:
        predict = build()
        found = predict(pixels)
    except Exception as error:  # noqa: BLE001 - the runtimes' own errors share no narrower base
        logger.warning("event=engine_failed engine=%s error=%s: %s", engine, type(error).__name__, error)
        return None
    threads = torch.get_num_threads() if engine == "torch" else 1
    return RunnableModel(engine, predict, PRECISIONS.get(engine, precision), threads, difference(expected, found, pixels.shape[-1]))


def _sound(form: RunnableModel, tolerance: float) -> bool:
    if not form.error <= tolerance:
        logger.warning("event=engine_refused engine=%s error=%.3g expected=%g", form.engine, form.error, tolerance)
    return form.error <= tolerance


def _fastest(forms: Sequence[RunnableModel], pixels: Tensor) -> RunnableModel:
    """Return the form that answers one image soonest, and log how long each takes."""
    if len(forms) == 1:
        return forms[0]
    seconds = time_interleaved({form.engine: functools.partial(form.predict, pixels) for form in forms})
    slowest = max(seconds.values())
    for form in forms:
        taken = seconds[form.engine]
        logger.info("event=engine_timed engine=%s ms=%.1f ratio=%.2f error=%.2g", form.engine, taken * 1e3, slowest / taken, form.error)
    return min(forms, key=lambda form: seconds[form.engine])


def time_interleaved(works: Mapping[str, Callable[[], object]], clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:
    """Return each work's median seconds over rounds that go on for `BUDGET_S`, so that a slow moment meets all of them."""
    rounds: list[dict[str, float]] = []
    deadline = clock() + BUDGET_S
    while len(rounds) < FEWEST_ROUNDS or (len(rounds) < MOST_ROUNDS and clock() < deadline):
        rounds.append({name: _seconds(work, clock) for name, work in works.items()})
    return {name: statistics.median(row[name] for row in rounds) for name in works}


def _seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    time.sleep(PAUSE_S)
    started = clock()
    work()
    return clock() - started

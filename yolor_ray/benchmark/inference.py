"""Compare the served form of a network with others of the same weights, from bytes to boxes, and with what the machine can do.

The forms, all with the same decoding and selection: `ancestor` is the network unfolded and as torch lays it out by default, which is
how YOLOR's own code runs it; `unfused` is that laid out channels last; `fused` is folded besides; `plain` is the folded network
without implicit knowledge; `served` is what a replica chooses.
Legend: B images, S side of the square network input in pixels.
"""

import copy
import functools
import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch

from yolor_ray.benchmark.inference_report import report
from yolor_ray.benchmark.peak import peak_works
from yolor_ray.config import ImplicitConfig, ServeConfig
from yolor_ray.config.benchmark import InferenceConfig
from yolor_ray.config.presets import PRESETS
from yolor_ray.errors import ConfigError, check
from yolor_ray.inference import detect, runtimes
from yolor_ray.inference.engine_choice import RunnableModel, choose_engine, scene_images
from yolor_ray.inference.runtimes import Predictor
from yolor_ray.inference.timing import time_interleaved
from yolor_ray.model.flops import flops
from yolor_ray.model.fuse import fuse
from yolor_ray.model.network import Yolor
from yolor_ray.model.transfer import transfer_weights
from yolor_ray.model.weights import WeightsInfo, load_weights
from yolor_ray.report.provenance import machine
from yolor_ray.train.elastic.worker_group import available_cores

logger = logging.getLogger(__name__)

LIMITS: dict[str, Any] = {"confidence": ServeConfig.confidence, "iou": ServeConfig.iou, "max_detections": ServeConfig.max_detections}
RANDOM_CLASSES = 80


def inference(config: InferenceConfig) -> dict[str, Any]:
    """Measure all forms in turns and return latencies, ratios, the share of the peak and what limits the served form.

    Ratios are of speeds, medians over rounds of what was measured in the same round; spreads are (largest - smallest) / median.
    """
    torch.set_num_threads(config.compute_threads or available_cores())
    device = _device(config)
    before = machine()
    network, info = _subject(config)
    network = network.to(device)
    served = choose_engine(network, info, precision=config.precision)
    peaks = peak_works(device)
    works = {**_works(config, network, served, info.image_px), **{name: work for name, (work, _) in peaks.items()}}
    operations = {name: count for name, (_, count) in peaks.items()}
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    with torch.inference_mode():
        rows = time_interleaved(works, config.rounds, wait=wait)
    for number, row in enumerate(rows, start=1):
        logger.info("event=round number=%d %s", number, " ".join(f"{name}={seconds * 1e3:.4g}ms" for name, seconds in row.items()))
    return {
        **report(rows, config.batches, flops(fuse(network), info.image_px), operations, served.precision),
        "engine": served.engine,
        "precision": served.precision,
        "error": served.error,
        "rounds": rows,
        "settings": _settings(config, network, info),
        "machine": before,
    }


def _device(config: InferenceConfig) -> torch.device:
    if config.gpu and not torch.cuda.is_available():
        raise ConfigError("gpu: found no CUDA device in this process, expected one; leave it out to measure on the CPU")
    return torch.device("cuda" if config.gpu else "cpu")


def _subject(config: InferenceConfig) -> tuple[Yolor, WeightsInfo]:
    """Return the network that is measured, not folded, and its description at the side that is measured."""
    network, info = load_weights(config.weights) if config.weights else _random(config.preset)
    if info.fused:
        raise ConfigError(f"weights: found folded weights at {config.weights}, expected those that training wrote: both are compared")
    image_px, stride = config.image_px or info.image_px, network.config.strides[-1]
    check(image_px % stride == 0, "image_px", image_px, f"a multiple of the network's coarsest stride, {stride}")
    return network, replace(info, image_px=image_px)


def _random(preset: str) -> tuple[Yolor, WeightsInfo]:
    """Return a preset's network as it is before training: its numbers stay moderate, and its speed is that of any weights."""
    train = PRESETS[preset]
    strides = torch.tensor(train.network.strides, dtype=torch.float32)
    torch.manual_seed(train.run.seed)
    anchors = strides.view(-1, 1, 1) * torch.linspace(2, 6, train.network.anchors_per_level).view(1, -1, 1).expand(-1, -1, 2)
    network = Yolor(train.network, RANDOM_CLASSES, anchors).eval()
    return network, WeightsInfo(preset, tuple(str(label) for label in range(RANDOM_CLASSES)), train.data.image_px)


def _plain(network: Yolor) -> Yolor:
    """Return the network without implicit knowledge, with all other weights that still fit."""
    config = replace(network.config, implicit=ImplicitConfig(align="none", refine="none"))
    plain = Yolor(config, anchors=network.head.anchors, **asdict(network.counts)).eval()
    names = WeightsInfo("", tuple(str(label) for label in range(network.classes)), 0)
    transfer_weights(plain, names, network, names)
    return plain.to(network.head.anchors.device)


def _works(config: InferenceConfig, network: Yolor, served: RunnableModel, image_px: int) -> dict[str, Callable[[], object]]:
    """Return what is timed: each form from bytes to boxes, and its parts outside of the network."""
    fused, device = fuse(network), network.head.anchors.device
    as_it_is = runtimes.DecodedYolor(network)
    predictors: dict[str, Predictor] = {
        "ancestor": lambda pixels: as_it_is(pixels.contiguous()),
        "unfused": runtimes.torch_predictor(copy.deepcopy(network)),
        "fused": runtimes.torch_predictor(fused),
        "plain": runtimes.torch_predictor(fuse(_plain(network))),
        "served": served.predict,
    }
    threads = {name: served.threads if name == "served" else torch.get_num_threads() for name in predictors}
    works: dict[str, Callable[[], object]] = {}
    for batch in config.batches:
        images = torch.from_numpy(scene_images(image_px, batch))
        for name, predictor in predictors.items():
            work = functools.partial(detect.detect, predictor, images, device, **LIMITS)
            works[f"{name}_{batch}"] = functools.partial(_with_threads, threads[name], work)
        with torch.inference_mode():
            pixels = detect.to_input(images, device)
            raw = fused(pixels)
            decoded = fused.decode(raw)
        works[f"input_{batch}"] = functools.partial(detect.to_input, images, device)
        works[f"decode_{batch}"] = functools.partial(fused.decode, raw)
        works[f"select_{batch}"] = functools.partial(detect.select, decoded, **LIMITS)
    return works


def _with_threads(threads: int, work: Callable[[], object]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    work()
    torch.set_num_threads(before)


def _settings(config: InferenceConfig, network: Yolor, info: WeightsInfo) -> dict[str, Any]:
    return {
        "weights": config.weights or "random",
        "name": info.name,
        "image_px": info.image_px,
        "classes": network.classes,
        "parameters": sum(p.numel() for p in network.parameters()),
        "batches": list(config.batches),
    }

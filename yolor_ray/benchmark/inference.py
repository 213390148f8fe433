"""Compare the latency of the served form of a network with other forms of the same weights, and with the machine's peak.

All forms have the same decoding and selection, from bytes to boxes. `ancestor` is the unfused network in torch's default memory layout,
which is how YOLOR's own code runs it. `unfused` is the same network in channels-last layout, and `fused` is fused as well. `plain` is
the fused network without implicit knowledge. `served` is the form that a replica chooses.
Rounds hold seconds per call under the names FORM_BATCH, STAGE_BATCH and, for the peaks, KIND_PRECISION.
"""

import copy
import functools
import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from yolor_ray.benchmark.peak import peak_functions
from yolor_ray.config import ImplicitConfig, ServeConfig
from yolor_ray.config.benchmark import InferenceConfig
from yolor_ray.config.presets import PRESETS
from yolor_ray.config.serve import FALLBACK_CONFIDENCE
from yolor_ray.errors import ConfigError
from yolor_ray.inference import detect
from yolor_ray.inference.engine_choice import RunnableModel, choose_engine, scene_images
from yolor_ray.inference.runtimes.torch_runtime import DecodedYolor, Predictor, torch_predictor
from yolor_ray.inference.timing import Rows, median, speed_ratios, spread, time_interleaved
from yolor_ray.model.flops import count_flops
from yolor_ray.model.fuse import fuse
from yolor_ray.model.network import Yolor
from yolor_ray.model.transfer import transfer_weights
from yolor_ray.model.weights import WeightsInfo, load_weights
from yolor_ray.report.provenance import available_cores, machine

logger = logging.getLogger(__name__)

LIMITS: dict[str, Any] = {"confidence": FALLBACK_CONFIDENCE, "iou": ServeConfig.iou, "max_detections": ServeConfig.max_detections}
RANDOM_CLASSES = 80
FORMS = ("ancestor", "unfused", "fused", "plain", "served")
STAGES = ("input", "decode", "select")
"""Stages outside of the convolutions, run by torch: bytes to floats, raw outputs to boxes and scores, these to detections."""
RATIOS = (("served", "ancestor"), ("fused", "unfused"), ("fused", "plain"))
"""Speed of the first form relative to the second; fused and plain networks should be equally fast."""
COMPUTE_BOUND, STAGES_BOUND = 0.7, 0.2
"""Shares of the served time above which the peak, or input and selection, count as the limit."""


def inference(config: InferenceConfig) -> dict[str, Any]:
    """Time all forms in turns and return latencies, ratios, the share of the peak and the limit of the served form.

    Ratios are ratios of speeds of the same round, medians over rounds; spreads are (largest - smallest) / median.
    """
    torch.set_num_threads(config.compute_threads or available_cores())
    device = _device(config)
    before = machine()
    network, info = _load_network(config)
    network = network.to(device)
    served = choose_engine(network, info, precision=config.precision)
    peaks = peak_functions(device)
    functions = _timed_functions(config, network, served, info.image_px) | {name: peak.function for name, peak in peaks.items()}
    operations = {name: peak.operations for name, peak in peaks.items()}
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    with torch.inference_mode():
        rows = time_interleaved(functions, config.rounds, wait=wait)
    for number, row in enumerate(rows, start=1):
        logger.info("event=round number=%d %s", number, " ".join(f"{name}={seconds * 1e3:.4g}ms" for name, seconds in row.items()))
    return {
        **summarise(rows, config.batches, count_flops(fuse(network), info.image_px), operations, served.precision),
        "engine": served.engine,
        "precision": served.precision,
        "error": served.error,
        "rounds": rows,
        "settings": _settings(config, network, info),
        "machine": before,
    }


def _device(config: InferenceConfig) -> torch.device:
    if config.gpu and not torch.cuda.is_available():
        raise ConfigError("gpu: found no CUDA device in this process, expected one; leave --gpu out to measure on the CPU")
    return torch.device("cuda" if config.gpu else "cpu")


def _load_network(config: InferenceConfig) -> tuple[Yolor, WeightsInfo]:
    """Load the unfused network, and return it with a description that has the measured image size."""
    network, info = load_weights(config.weights) if config.weights else _random_network(config.preset)
    if info.fused:
        raise ConfigError(f"weights: found fused weights at {config.weights}, expected unfused weights of a training run")
    image_px = config.image_px or info.image_px
    network.config.check_image_px(image_px, "image_px")
    return network, replace(info, image_px=image_px)


def _random_network(preset: str) -> tuple[Yolor, WeightsInfo]:
    """Return a preset's untrained network; its activations stay finite, and its speed is that of trained weights."""
    train = PRESETS[preset]
    strides = torch.tensor(train.network.strides, dtype=torch.float32)
    torch.manual_seed(train.run.seed)
    anchors = strides.view(-1, 1, 1) * torch.linspace(2, 6, train.network.anchors_per_level).view(1, -1, 1).expand(-1, -1, 2)
    network = Yolor(train.network, RANDOM_CLASSES, anchors).eval()
    return network, WeightsInfo(preset, tuple(str(label) for label in range(RANDOM_CLASSES)), train.data.image_px)


def _without_implicit(network: Yolor) -> Yolor:
    """Return the network without implicit knowledge, with all other weights."""
    config = replace(network.config, implicit=ImplicitConfig(align="none", refine="none"))
    plain = Yolor(config, anchors=network.head.anchors, **asdict(network.counts)).eval()
    names = WeightsInfo("", tuple(str(label) for label in range(network.classes)), 0)
    transfer_weights(plain, names, network, names)
    return plain.to(network.head.anchors.device)


def _timed_functions(config: InferenceConfig, network: Yolor, served: RunnableModel, image_px: int) -> dict[str, Callable[[], object]]:
    """Return the functions to time: each form from bytes to boxes, and the stages outside of the network."""
    fused, device = fuse(network), network.head.anchors.device
    default_layout = DecodedYolor(network)
    predictors: dict[str, Predictor] = {
        "ancestor": lambda pixels: default_layout(pixels.contiguous()),
        "unfused": torch_predictor(copy.deepcopy(network)),
        "fused": torch_predictor(fused),
        "plain": torch_predictor(fuse(_without_implicit(network))),
        "served": served.predict,
    }
    threads = {name: served.threads if name == "served" else torch.get_num_threads() for name in predictors}
    functions: dict[str, Callable[[], object]] = {}
    for batch in config.batches:
        images = torch.from_numpy(scene_images(image_px, batch))
        for name, predictor in predictors.items():
            function = functools.partial(detect.detect, predictor, images, device, **LIMITS)
            functions[f"{name}_{batch}"] = functools.partial(_with_threads, threads[name], function)
        with torch.inference_mode():
            pixels = detect.to_input(images, device)
            raw = fused(pixels)
            decoded = fused.decode(raw)
        functions[f"input_{batch}"] = functools.partial(detect.to_input, images, device)
        functions[f"decode_{batch}"] = functools.partial(fused.decode, raw)
        functions[f"select_{batch}"] = functools.partial(detect.select, decoded, **LIMITS)
    return functions


def _with_threads(threads: int, function: Callable[[], object]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    function()
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


def summarise(
    rows: Rows, batches: Sequence[int], image_flops: float, peak_operations: Mapping[str, float], precision: str
) -> dict[str, Any]:
    """Return medians over the rounds, ratios of speeds within each round, spreads, shares of the peak and the limit.

    Args:
        rows: seconds per call, round by round.
        batches: images per call; the first gives the main ratio and the limit.
        image_flops: floating point operations of one image.
        peak_operations: operations per call of each peak function.
        precision: precision of the peak that is the measure.
    """
    # The best round and not the median: a peak is the speed of an undisturbed machine.
    peaks = {name: operations / min(row[name] for row in rows) for name, operations in peak_operations.items()}
    peak = max((name for name in peaks if name.endswith(precision)), key=lambda name: peaks[name])
    batch = batches[0]
    ratios = speed_ratios(rows, f"served_{batch}", f"ancestor_{batch}")
    stages_s = median(rows, f"input_{batch}") + median(rows, f"select_{batch}")
    return {
        "ratio": statistics.median(ratios),
        "ratio_spread": spread(ratios),
        "batches": {str(batch): _summarise_batch(rows, batch, batch * image_flops / peaks[peak]) for batch in batches},
        "gflop_per_image": image_flops / 1e9,
        "peak_gflop_per_s": {name: value / 1e9 for name, value in peaks.items()},
        "limit": describe_limit(median(rows, f"served_{batch}"), stages_s, batch * image_flops / peaks[peak], peak),
    }


def _summarise_batch(rows: Rows, batch: int, peak_s: float) -> dict[str, Any]:
    """Return the numbers of one batch size, whose operations take `peak_s` at the peak."""
    seconds = {name: median(rows, f"{name}_{batch}") for name in (*FORMS, *STAGES)}
    ratios = {f"{form}/{reference}": speed_ratios(rows, f"{form}_{batch}", f"{reference}_{batch}") for form, reference in RATIOS}
    return {
        "ms": {name: value * 1e3 for name, value in seconds.items()},
        "images_per_s": {name: batch / seconds[name] for name in FORMS},
        "ratios": {name: statistics.median(values) for name, values in ratios.items()},
        "spreads": {
            **{name: spread([row[f"{name}_{batch}"] for row in rows]) for name in FORMS},
            **{name: spread(values) for name, values in ratios.items()},
        },
        "share_of_peak": {name: peak_s / seconds[name] for name in FORMS},
    }


def describe_limit(served_s: float, stages_s: float, peak_s: float, peak: str) -> str:
    """Describe in one sentence the limit of the served form's speed.

    Args:
        served_s: latency from bytes to boxes.
        stages_s: time of input and selection within that latency.
        peak_s: time of the network's operations at the peak.
        peak: name of the peak function.
    """
    peak_share, stages_share = peak_s / served_s, stages_s / served_s
    shares = (
        f"of {served_s * 1e3:.1f} ms, the network's operations account for {peak_s * 1e3:.1f} ms ({peak_share:.0%}) at the peak of {peak}, "
        f"input and selection for {stages_s * 1e3:.1f} ms ({stages_share:.0%})"
    )
    if peak_share >= COMPUTE_BOUND:
        return f"compute: {shares}; in this precision at most {max(1 / peak_share, 1):.2f} times that speed is left"
    if stages_share >= STAGES_BOUND:
        return f"input and selection: {shares}"
    return f"memory traffic and layers too small for the peak: {shares}"

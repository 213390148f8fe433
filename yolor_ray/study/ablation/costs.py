"""Say what implicit knowledge costs and what it has learned, from trained weights."""

import copy
import functools
from collections.abc import Mapping

import torch

from yolor_ray.inference import detect, runtimes
from yolor_ray.inference.timing import median, time_interleaved
from yolor_ray.model.flops import flops
from yolor_ray.model.fuse import fuse
from yolor_ray.model.implicit import Implicit
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo, load_weights
from yolor_ray.report.provenance import machine
from yolor_ray.study.results import Cost, Prior
from yolor_ray.train.elastic.worker_group import available_cores

ROUNDS = 5


def costs_of(weights: Mapping[str, str], baseline: str, gpu: bool) -> tuple[dict[str, Cost], str]:
    """Return the costs of networks by name, from the URLs of their weights, and the machine that they were measured on.

    Each network takes turns with the baseline, one image at a time, so that ratios to it are of the same moments and only two
    networks are in memory; latencies are told as if the baseline had always been as fast as the first time.
    """
    torch.set_num_threads(available_cores())
    known, _ = load_weights(weights[baseline])
    first: float | None = None
    found = {}
    for name, url in weights.items():
        network, info = load_weights(url)
        milliseconds = _latencies({"baseline": known} | ({} if name == baseline else {"own": network}), info.image_px, gpu)
        first = first or milliseconds["baseline fused"]
        scale = first / milliseconds["baseline fused"]
        who = "baseline" if name == baseline else "own"
        found[name] = _cost(network, info, milliseconds[f"{who} unfused"] * scale, milliseconds[f"{who} fused"] * scale)
    return found, _machine()


def _latencies(networks: Mapping[str, Yolor], image_px: int, gpu: bool) -> dict[str, float]:
    """Return milliseconds per image of each network as it is and fused, medians over rounds in which all take turns."""
    device = torch.device("cuda" if gpu else "cpu")
    pixels = detect.to_input(torch.zeros(1, image_px, image_px, 3, dtype=torch.uint8), device)
    works = {}
    for name, network in networks.items():
        for form, one in (("unfused", copy.deepcopy(network)), ("fused", fuse(network))):
            works[f"{name} {form}"] = functools.partial(runtimes.torch_predictor(one.to(device)), pixels)
    rows = time_interleaved(works, ROUNDS, wait=torch.cuda.synchronize if gpu else lambda: None)
    return {name: median(rows, name) * 1e3 for name in works}


def _machine() -> str:
    here = machine()
    gpu = f", {here['gpu']}" if here["gpu"] else ""
    return f"{here['cpu']}, {here['compute_threads']} threads{gpu}, torch {here['torch']}"


def _cost(network: Yolor, info: WeightsInfo, unfused_ms: float, fused_ms: float) -> Cost:
    fused = fuse(network)
    return Cost(
        parameters=parameters(network),
        flops=flops(network, info.image_px),
        fused_parameters=parameters(fused),
        fused_flops=flops(fused, info.image_px),
        unfused_ms=unfused_ms,
        fused_ms=fused_ms,
    )


def parameters(network: Yolor) -> int:
    """Return how many numbers a network has learned."""
    return sum(parameter.numel() for parameter in network.parameters())


@torch.no_grad()
def priors_of(network: Yolor) -> tuple[Prior, ...]:
    """Return the learned constants of a network that is not folded, level by level."""
    found = []
    anchors = network.config.anchors_per_level
    for number, level in enumerate(network.head.levels):
        for module in (level.pyramid, level.align):
            if isinstance(module, Implicit):
                found.append(Prior("align", number, module.operator, module.constant().numpy()))
        if isinstance(level.refine, Implicit):
            values = level.refine.constant().view(anchors, -1).numpy()
            found.append(Prior("refine", number, level.refine.operator, values))
    return tuple(found)

"""Costs of trained networks (parameters, FLOPs, latency) and their learned priors, from weights."""

import copy
import functools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from yolor_ray.inference import detect
from yolor_ray.inference.runtimes.torch_runtime import torch_predictor
from yolor_ray.inference.timing import median, time_interleaved
from yolor_ray.model.flops import count_flops
from yolor_ray.model.fuse import fuse
from yolor_ray.model.heads.prediction_level import PredictionLevel
from yolor_ray.model.implicit import IMPLICIT_MODULES, NEUTRAL, Implicit, Projection
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo, load_weights
from yolor_ray.report.provenance import available_cores, machine
from yolor_ray.study.results import Cost, Prior

ROUNDS = 5


def measure_costs(weights: Mapping[str, str], baseline: str, gpu: bool) -> tuple[dict[str, Cost], str]:
    """Return the cost of each network by name, and a description of the machine.

    Each network is timed in interleaved rounds with the baseline, one image at a time. Both latencies of a ratio are therefore measured at
    the same time, and only two networks are in memory. Latencies are scaled as if the baseline's latency had not changed since its first
    measurement.

    Args:
        weights: URLs of the weights by name.
        baseline: name of the baseline in `weights`.
        gpu: measure on the GPU.

    """
    torch.set_num_threads(available_cores())
    baseline_network, _ = load_weights(weights[baseline])
    first_ms: float | None = None
    costs = {}
    for name, url in weights.items():
        network, info = load_weights(url)
        networks = {baseline: baseline_network} | {name: network}
        milliseconds = _latencies(networks, info.image_px, gpu)
        first_ms = first_ms or milliseconds[f"{baseline} fused"]
        scale = first_ms / milliseconds[f"{baseline} fused"]
        costs[name] = _cost(network, info, milliseconds[f"{name} unfused"] * scale, milliseconds[f"{name} fused"] * scale)
    return costs, _describe_machine()


def _latencies(networks: Mapping[str, Yolor], image_px: int, gpu: bool) -> dict[str, float]:
    """Return milliseconds per image of each network unfused and fused: medians over interleaved rounds."""
    device = torch.device("cuda" if gpu else "cpu")
    pixels = detect.to_input(torch.zeros(1, image_px, image_px, 3, dtype=torch.uint8), device)
    functions = {}
    for name, network in networks.items():
        for suffix, copied in (("unfused", copy.deepcopy(network)), ("fused", fuse(network))):
            functions[f"{name} {suffix}"] = functools.partial(torch_predictor(copied.to(device)), pixels)
    rows = time_interleaved(functions, ROUNDS, wait=torch.cuda.synchronize if gpu else lambda: None)
    return {name: median(rows, name) * 1e3 for name in functions}


def _describe_machine() -> str:
    info = machine()
    gpu = f", {info['gpu']}" if info["gpu"] else ""
    return f"{info['cpu']}, {info['compute_threads']} threads{gpu}, torch {info['torch']}"


def _cost(network: Yolor, info: WeightsInfo, unfused_ms: float, fused_ms: float) -> Cost:
    fused = fuse(network)
    return Cost(
        parameters=count_parameters(network),
        flops=count_flops(network, info.image_px),
        fused_parameters=count_parameters(fused),
        fused_flops=count_flops(fused, info.image_px),
        unfused_ms=unfused_ms,
        fused_ms=fused_ms,
    )


def count_parameters(network: Yolor) -> int:
    """Return the number of a network's learned parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


@torch.no_grad()
def read_priors(network: Yolor) -> tuple[Prior, ...]:
    """Return the learned constants of an unfused network, level by level."""
    priors = []
    for number, branches in enumerate(zip(*network.head.branches, strict=True)):
        aligned = [module for level in branches for module in (level.pyramid, level.align) if isinstance(module, IMPLICIT_MODULES)]
        if aligned:
            values = torch.cat([_channel_values(module) for module in aligned]).numpy()
            priors.append(Prior("align", number, aligned[0].operator, values))
        priors += _read_refinement(number, branches, network.config.predictions_per_cell)
    return tuple(priors)


def _channel_values(module: Implicit | Projection) -> Tensor:
    """Return the constant of each channel; of a projection, the length of the part of z that acts on the channel."""
    return module.z.norm(dim=0) if isinstance(module, Projection) else module.constant()


def _read_refinement(number: int, branches: Sequence[PredictionLevel], predictions_per_cell: int) -> list[Prior]:
    """Return the priors on the outputs of a level: one prior for each operator, NaN at the outputs of the other operator."""
    refined = [level.refine for level in branches if isinstance(level.refine, Implicit)]
    if not refined:
        return []
    operator, added = refined[0].operator, refined[0].added
    constants = [
        level.refine.constant() if isinstance(level.refine, Implicit) else torch.full((level.predict.out_channels,), NEUTRAL[operator])
        for level in branches
    ]
    values, unknown = torch.cat(constants), torch.tensor(math.nan)
    parts = {operator: values} if added is None else {"add": values.where(added, unknown), "multiply": values.where(~added, unknown)}
    return [Prior("refine", number, name, part.view(predictions_per_cell, -1).numpy()) for name, part in parts.items()]

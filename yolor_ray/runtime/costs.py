"""Say what implicit knowledge costs and what it has learned, from trained weights."""

import copy

import torch

from yolor_ray.evaluate.study import Cost, Prior
from yolor_ray.model import graph, predict
from yolor_ray.model.cost import flops
from yolor_ray.model.fuse import fuse
from yolor_ray.model.implicit import Implicit
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo, load_weights
from yolor_ray.runtime.benchmark_rounds import in_rounds, median
from yolor_ray.runtime.workers import cores

ROUNDS = 7


def costs_of(weights: dict[str, str], gpu: bool) -> dict[str, Cost]:
    """Return the costs of networks by name, from the URLs of their weights; all are timed in turns, one image at a time."""
    torch.set_num_threads(cores())
    device = torch.device("cuda" if gpu else "cpu")
    networks = {name: load_weights(url) for name, url in weights.items()}
    works = {}
    for name, (network, info) in networks.items():
        pixels = predict.to_input(torch.zeros(1, info.image_px, info.image_px, 3, dtype=torch.uint8), device)
        for form, one in (("unfused", copy.deepcopy(network)), ("fused", fuse(network))):
            predictor = graph.torch_predictor(one.to(device))
            works[f"{name} {form}"] = lambda predictor=predictor, pixels=pixels: predictor(pixels)
    rows = in_rounds(works, ROUNDS, wait=torch.cuda.synchronize if gpu else lambda: None)
    milliseconds = {name: median(rows, name) * 1e3 for name in works}
    return {
        name: _cost(network, info, milliseconds[f"{name} unfused"], milliseconds[f"{name} fused"])
        for name, (network, info) in networks.items()
    }


def _cost(network: Yolor, info: WeightsInfo, unfused_ms: float, fused_ms: float) -> Cost:
    fused = fuse(network)
    return Cost(
        parameters=_parameters(network),
        flops=flops(network, info.image_px),
        fused_parameters=_parameters(fused),
        fused_flops=flops(fused, info.image_px),
        unfused_ms=unfused_ms,
        fused_ms=fused_ms,
    )


def _parameters(network: Yolor) -> int:
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

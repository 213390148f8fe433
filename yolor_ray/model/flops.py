"""Count the operations of a network without running it, implicit knowledge included."""

import copy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from yolor_ray.model.implicit import Implicit
from yolor_ray.model.network import Yolor


def flops(network: Yolor, image_px: int) -> int:
    """Return the floating point operations of one image: two per multiply-add of a convolution, one per number that a prior changes."""
    network = copy.deepcopy(network).to("meta").eval()
    changed = 0

    def count(module: nn.Module, _: object, joined: Tensor) -> None:
        nonlocal changed
        # A concatenated prior changes no number; what it costs is the wider convolution behind it.
        changed += 0 if isinstance(module, Implicit) and module.operator == "concat" else joined.numel()

    for module in network.modules():
        if isinstance(module, Implicit):
            module.register_forward_hook(count)
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        network(torch.empty(1, 3, image_px, image_px, device="meta"))
    return counter.get_total_flops() + changed

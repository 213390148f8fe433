"""Count the floating point operations of a network on the meta device, implicit knowledge included."""

import copy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from yolor_ray.model.implicit import Implicit
from yolor_ray.model.network import Yolor


def count_flops(network: Yolor, image_px: int) -> int:
    """Return the floating point operations for one square image of `image_px` pixels a side.

    A multiply-add of a convolution counts as two operations, a number changed by a prior as one.
    """
    network = copy.deepcopy(network).to("meta").eval()
    changed_numbers = 0

    def count_changed(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal changed_numbers
        # A concatenated prior changes no number; its cost is the wider convolution after it. A projection is a convolution.
        changed_numbers += 0 if isinstance(module, Implicit) and module.operator == "concat" else output.numel()

    for module in network.modules():
        if isinstance(module, Implicit):
            module.register_forward_hook(count_changed)
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        network(torch.empty(1, 3, image_px, image_px, device="meta"))
    return counter.get_total_flops() + changed_numbers

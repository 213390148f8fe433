"""What a network costs: operations of its convolutions, and of its implicit knowledge."""

import pytest
import torch
from torch import nn

from yolor_ray.config.variants import BASELINE, VARIANTS
from yolor_ray.model.flops import flops
from yolor_ray.model.fuse import fuse

SIDE = 64
CELLS = [(SIDE // stride) ** 2 for stride in (8, 16, 32)]


def test_operations_are_two_per_multiply_add_of_every_convolution(make_network):
    network, found = make_network(implicit=VARIANTS[BASELINE].implicit).eval(), []

    def count(layer, _, output):
        found.append(2 * output.numel() * layer.weight[0].numel())

    hooks = [layer.register_forward_hook(count) for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    with torch.inference_mode():
        network(torch.zeros(1, 3, SIDE, SIDE))
    for hook in hooks:
        hook.remove()
    assert flops(network, SIDE) == sum(found)


@pytest.mark.parametrize("name", ["fa-add", "pr-multiply", "fa-add-pr-multiply", "pr-multiply-size", "fa-add-network"])
def test_a_prior_costs_one_operation_per_number_that_it_changes_and_none_when_folded(make_network, name):
    implicit = VARIANTS[name].implicit
    plain, network = make_network(implicit=VARIANTS[BASELINE].implicit).eval(), make_network(implicit=implicit).eval()
    widths = [level.predict.in_channels for level in network.head.levels]
    outputs = [level.predict.out_channels for level in network.head.levels]
    numbers = (widths if implicit.align != "none" else [], outputs if implicit.refine != "none" else [])
    expected = sum(cells * channels for each in numbers for cells, channels in zip(CELLS, each, strict=False))
    assert flops(network, SIDE) - flops(plain, SIDE) == expected > 0
    assert flops(fuse(network), SIDE) == flops(fuse(plain), SIDE)

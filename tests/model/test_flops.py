"""Operations of a network: its convolutions and its implicit knowledge."""

import pytest
import torch
from torch import nn

from yolor_ray.config.variants import BASELINE, VARIANTS
from yolor_ray.model.flops import count_flops
from yolor_ray.model.fuse import fuse

SIDE = 64
CELLS = [(SIDE // stride) ** 2 for stride in (8, 16, 32)]


def test_a_multiply_add_of_a_convolution_counts_as_two_operations(make_network):
    network, layer_operations = make_network(implicit=VARIANTS[BASELINE].implicit).eval(), []

    def count(layer, _, output):
        layer_operations.append(2 * output.numel() * layer.weight[0].numel())

    hooks = [layer.register_forward_hook(count) for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    with torch.inference_mode():
        network(torch.zeros(1, 3, SIDE, SIDE))
    for hook in hooks:
        hook.remove()
    assert count_flops(network, SIDE) == sum(layer_operations)


@pytest.mark.parametrize("name", ["fa-add", "pr-multiply", "fa-add-pr-multiply", "pr-multiply-size", "fa-add-network"])
def test_a_prior_costs_one_operation_per_changed_number_and_none_when_fused(make_network, name):
    implicit = VARIANTS[name].implicit
    plain, network = make_network(implicit=VARIANTS[BASELINE].implicit).eval(), make_network(implicit=implicit).eval()
    widths = [level.predict.in_channels for level in network.head.levels]
    outputs = [level.predict.out_channels for level in network.head.levels]
    channels_by_level = (widths if implicit.align != "none" else [], outputs if implicit.refine != "none" else [])
    expected = sum(cells * channels for levels in channels_by_level for cells, channels in zip(CELLS, levels, strict=False))
    assert count_flops(network, SIDE) - count_flops(plain, SIDE) == expected > 0
    assert count_flops(fuse(network), SIDE) == count_flops(fuse(plain), SIDE)

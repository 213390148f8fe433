"""Folding constants into convolutions changes no prediction, for every member of the family."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from yolor_ray.model.fuse import fuse, is_fused
from yolor_ray.model.implicit import ImplicitAdd, ImplicitMultiply

KINDS = [
    {"stem": stem, "block": block, "down": down, "joint_norm": joint}
    for stem, block, down, joint in itertools.product(("conv", "reorg"), ("csp", "cspf"), ("conv", "downc"), (False, True))
]
names = pytest.mark.parametrize("kind", KINDS, ids=["-".join(str(v) for v in kind.values()) for kind in KINDS])


def largest_difference(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """Return the largest difference of raw predictions, as a share of the largest prediction."""
    return max(((x - y).abs().max() / x.abs().max()).item() for x, y in zip(a, b, strict=True))


@names
@torch.inference_mode()
def test_fusing_changes_no_prediction(make_network, kind):
    network, image = make_network(**kind), torch.rand(2, 3, 64, 64)
    assert largest_difference(network(image), fuse(network)(image)) < 1e-4
    network, image = network.double(), image.double()
    assert largest_difference(network(image), fuse(network)(image)) < 1e-12


@names
def test_no_norm_and_no_implicit_vector_is_left(make_network, kind):
    network = make_network(**kind)
    fused = fuse(network)
    assert not any(isinstance(m, nn.BatchNorm2d | ImplicitAdd | ImplicitMultiply) for m in fused.modules())
    assert is_fused(fused)
    assert not is_fused(network)
    assert not any(name.endswith((".z", "running_mean", "num_batches_tracked")) for name in fused.state_dict())


@pytest.mark.parametrize("joint_norm", [False, True])
def test_fusing_twice_changes_nothing(make_network, joint_norm):
    once = fuse(make_network(block="cspf", joint_norm=joint_norm))
    twice = fuse(once)
    assert once.state_dict().keys() == twice.state_dict().keys()
    for name, tensor in once.state_dict().items():
        assert torch.equal(tensor, twice.state_dict()[name]), name


def test_fusing_leaves_the_network_as_it_was(make_network):
    network = make_network(block="cspf", joint_norm=True).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fused = fuse(network)
    assert network.training
    assert not fused.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_a_fused_network_learns_nothing(make_network):
    assert not any(parameter.requires_grad for parameter in fuse(make_network()).parameters())


@torch.inference_mode()
def test_implicit_vectors_matter_before_they_are_folded(make_network):
    network, image = make_network(), torch.rand(1, 3, 64, 64)
    before = network(image)
    for level in network.head.levels:
        level.align.z.zero_()
        level.refine.z.fill_(1.0)
    assert largest_difference(before, network(image)) > 0.1


def test_a_shift_before_a_padded_3x3_cannot_become_a_bias():
    """Padding shows zeros where the shifted map would show the shift: why only the 1x1 prediction convolutions are folded."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, padding=1).double()
    x, shift = torch.randn(1, 4, 8, 8).double(), torch.randn(4).double()
    true = conv(x + shift.view(1, 4, 1, 1))
    naive = F.conv2d(x, conv.weight, conv.bias + (conv.weight * shift.view(1, 4, 1, 1)).sum(dim=(1, 2, 3)), padding=1)
    difference = (true - naive).abs()
    assert difference[..., 1:-1, 1:-1].max() < 1e-12
    border = torch.cat((difference[..., 0, :], difference[..., -1, :], difference[..., 0], difference[..., -1]), dim=-1)
    assert border.max() > 0.1

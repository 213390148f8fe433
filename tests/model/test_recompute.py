"""Recomputed activations: the same gradients and statistics bit for bit, from less memory."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from yolor_ray.model.network import Yolor
from yolor_ray.model.recompute import run_block

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
LAYOUTS = [
    {"stem": "reorg"},
    {"stem": "conv"},
    {"stem": "csp", "activation": "mish"},
    {"stem": "reorg", "block": "cspf", "joint_norm": True, "down": "downc"},
]


@pytest.fixture(params=LAYOUTS, ids=lambda layout: "-".join(map(str, layout.values())))
def pair(request, make_network: Callable[..., Yolor]) -> list[Yolor]:
    """Return two equal networks in training mode; the second recomputes its activations."""
    keeping, recomputing = (make_network(**request.param).train() for _ in range(2))
    recomputing.backbone.recompute = recomputing.neck.recompute = True
    return [keeping, recomputing]


def train(network: Yolor, steps: int) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    for step in range(steps):
        optimizer.zero_grad()
        loss(network, IMAGES.roll(step, dims=-1)).backward()
        optimizer.step()


def loss(network: Yolor, images: Tensor) -> Tensor:
    return torch.stack([level.square().mean() for level in network(images)["detect"]]).sum()


def test_weights_and_statistics_are_equal_bit_for_bit_after_two_steps(pair: list[Yolor]) -> None:
    start = copy.deepcopy(pair[0].state_dict())
    for network in pair:
        train(network, steps=2)
    expected, found = (network.state_dict() for network in pair)
    assert not torch.equal(start["neck.spp.before.0.conv.weight"], expected["neck.spp.before.0.conv.weight"])
    assert not torch.equal(start["neck.spp.before.0.norm.running_mean"], expected["neck.spp.before.0.norm.running_mean"])
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_a_gradient_at_the_features_leaves_the_backward_pass_as_it_is(pair: list[Yolor]) -> None:
    gradients = []
    for network in pair:
        features = network.neck(network.backbone(IMAGES))
        total = torch.stack([level.square().mean() for level in network.head(features)]).sum()
        for _ in range(2):
            torch.autograd.grad(total, features, retain_graph=True)
        total.backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(torch.equal(kept, recomputed) for kept, recomputed in zip(*gradients, strict=True))
    assert torch.equal(*(network.backbone.stages[0][1].first.norm.running_mean for network in pair))


def test_far_fewer_bytes_are_kept_for_the_backward_pass(pair: list[Yolor]) -> None:
    kept = []
    for network in pair:
        storages: dict[int, int] = {}

        def note(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        parameters = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            raw = network(IMAGES)
        assert raw["detect"][0].requires_grad
        kept.append(sum(size for pointer, size in storages.items() if pointer not in parameters))
    assert kept[1] < 0.5 * kept[0]


def test_validation_keeps_nothing_and_recomputes_nothing(make_network: Callable[..., Yolor], monkeypatch) -> None:
    network = make_network()
    expected = network(IMAGES)["detect"]
    network.backbone.recompute = network.neck.recompute = True
    monkeypatch.setattr("yolor_ray.model.recompute.checkpoint", None)
    with torch.inference_mode():
        found = network(IMAGES)["detect"]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_a_failed_backward_pass_leaves_the_statistics_as_they_were() -> None:
    class Failing(nn.Module):
        passes = 0

        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            self.passes += 1
            normalised = self.norm(x).square()
            if self.passes == 2:
                raise torch.OutOfMemoryError("out of memory")
            return normalised.exp()

    block = Failing()
    statistics = dict(block.named_buffers())
    output = run_block(block, IMAGES, recompute=True)
    with pytest.raises(torch.OutOfMemoryError):
        output.sum().backward()
    assert all(buffer is statistics[name] for name, buffer in block.named_buffers())
    assert block.norm.num_batches_tracked == 1

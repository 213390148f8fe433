"""Fusing changes no prediction, for every member of the family and every form of implicit knowledge."""

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from yolor_ray.config import ImplicitConfig
from yolor_ray.config.network import TASKS
from yolor_ray.config.presets import PLAIN, PRESETS
from yolor_ray.model.fuse import fuse, is_fused
from yolor_ray.model.implicit import IMPLICIT_MODULES
from yolor_ray.model.network import Yolor

SETTINGS = [
    {"stem": stem, "block": block, "down": down, "joint_norm": joint_norm, "tasks": TASKS}
    for stem, block, down, joint_norm in itertools.product(("conv", "reorg"), ("csp", "cspf"), ("conv", "downc"), (False, True))
]
every_network = pytest.mark.parametrize("settings", SETTINGS, ids=["-".join(str(v) for v in list(s.values())[:4]) for s in SETTINGS])


def largest_difference(a: dict[str, list[torch.Tensor]], b: dict[str, list[torch.Tensor]]) -> float:
    """Return the largest difference of raw outputs of any task, as a share of the largest output."""
    return max(((x - y).abs().max() / x.abs().max()).item() for task in a for x, y in zip(a[task], b[task], strict=True))


@every_network
@torch.inference_mode()
def test_fusing_changes_no_prediction(make_network, settings):
    network, image = make_network(**settings), torch.rand(2, 3, 64, 64)
    assert largest_difference(network(image), fuse(network)(image)) < 1e-4
    network, image = network.double(), image.double()
    assert largest_difference(network(image), fuse(network)(image)) < 1e-12


@every_network
def test_a_fused_network_has_no_norm_and_no_implicit_vector(make_network, settings):
    network = make_network(**settings)
    fused = fuse(network)
    assert not any(isinstance(m, (nn.BatchNorm2d, *IMPLICIT_MODULES)) for m in fused.modules())
    assert is_fused(fused)
    assert not is_fused(network)
    assert not any(name.endswith((".z", ".phi", "running_mean", "num_batches_tracked")) for name in fused.state_dict())


@pytest.mark.parametrize("joint_norm", [False, True])
def test_fusing_twice_is_refused(make_network, joint_norm):
    once = fuse(make_network(block="cspf", joint_norm=joint_norm))
    with pytest.raises(ValueError, match="fused already"):
        fuse(once)


def test_fusing_does_not_change_the_original_network(make_network):
    network = make_network(block="cspf", joint_norm=True).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fused = fuse(network)
    assert network.training
    assert not fused.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_a_fused_network_is_frozen(make_network):
    assert not any(parameter.requires_grad for parameter in fuse(make_network()).parameters())


@torch.inference_mode()
def test_implicit_vectors_of_the_test_networks_change_predictions(make_network):
    network, image = make_network(), torch.rand(1, 3, 64, 64)
    before = network(image)
    for level in network.head.levels:
        level.align.z.zero_()
        level.refine.z.fill_(1.0)
    assert largest_difference(before, network(image)) > 0.1


ALIGNS = [
    *itertools.product(("add", "multiply", "concat", "project"), ("prediction", "pyramid"), ("vector",), ("level",)),
    *itertools.product(("add", "multiply", "concat"), ("pyramid",), ("network", "factors"), ("level",)),
    *itertools.product(("add", "multiply", "concat"), ("prediction",), ("vector",), ("anchor",)),
]
REFINES = [
    *itertools.product(("add", "multiply"), ("vector", "network", "factors"), ("all", "centre", "size")),
    *itertools.product(("add_multiply",), ("vector", "network", "factors"), ("all",)),
]
IMPLICITS = [
    ImplicitConfig(align=a, align_at=at, align_by=by, align_per=per, refine=r, refine_by=rby, refine_what=what)
    for (a, at, by, per), (r, rby, what) in zip(itertools.islice(itertools.cycle(ALIGNS), len(REFINES)), REFINES, strict=True)
]
every_form = pytest.mark.parametrize("implicit", IMPLICITS, ids=lambda i: f"{i.align}-{i.align_at}-{i.align_by}-{i.align_per}-{i.refine}")


@every_form
@torch.inference_mode()
def test_every_form_of_implicit_knowledge_folds_exactly(make_network, implicit):
    network = make_network(implicit=implicit, tasks=TASKS).double()
    fused, image = fuse(network), torch.rand(2, 3, 64, 96).double()
    assert is_fused(fused)
    assert largest_difference(network(image), fused(image)) < 1e-12


class OperationCounter(TorchDispatchMode):
    """Counter of the operations that torch runs, by name and by shape of the result."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        self.counts[f"{operation} {getattr(result, 'shape', None)}"] += 1
        return result


def count_operations(network: nn.Module, device: str) -> Counter:
    with OperationCounter() as counter, torch.no_grad():
        network(torch.empty(1, 3, 128, 128, device=device))
    return counter.counts


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.network.implicit != PLAIN])
def test_a_fused_preset_has_exactly_the_operations_of_a_network_without_implicit_knowledge(name):
    config = PRESETS[name].network
    plain = replace(config, implicit=PLAIN)
    with torch.device("meta"):
        anchors = torch.ones(config.levels, config.anchors_per_level, 2)
        fused, plain_fused = (fuse(Yolor(c, 80, anchors, image_classes=3, keypoints=5)) for c in (config, plain))
    assert count_operations(fused, "meta") == count_operations(plain_fused, "meta")


@pytest.mark.parametrize("implicit", [i for i in IMPLICITS if i.align_at == "prediction" or i.align in ("multiply", "project")])
def test_a_fused_prior_leaves_no_operation_except_a_constant_before_a_padded_convolution(make_network, implicit):
    plain = ImplicitConfig(align="none", refine="none")
    counts, expected = (count_operations(fuse(make_network(implicit=i)), "cpu") for i in (implicit, plain))
    assert counts == expected
    assert sum(counts.values()) > 100

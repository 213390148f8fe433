"""Folding constants into convolutions changes no prediction, for every member of the family."""

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from yolor_ray.config import ImplicitConfig as Implicits
from yolor_ray.config.network import TASKS
from yolor_ray.config.presets import PRESETS
from yolor_ray.model.fuse import fuse, is_fused
from yolor_ray.model.implicit import Implicit
from yolor_ray.model.network import Yolor

KINDS = [
    {"stem": stem, "block": block, "down": down, "joint_norm": joint, "tasks": TASKS}
    for stem, block, down, joint in itertools.product(("conv", "reorg"), ("csp", "cspf"), ("conv", "downc"), (False, True))
]
names = pytest.mark.parametrize("kind", KINDS, ids=["-".join(str(v) for v in list(kind.values())[:4]) for kind in KINDS])


def largest_difference(a: dict[str, list[torch.Tensor]], b: dict[str, list[torch.Tensor]]) -> float:
    """Return the largest difference of raw predictions of any task, as a share of the largest prediction."""
    return max(((x - y).abs().max() / x.abs().max()).item() for task in a for x, y in zip(a[task], b[task], strict=True))


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
    assert not any(isinstance(m, nn.BatchNorm2d | Implicit) for m in fused.modules())
    assert is_fused(fused)
    assert not is_fused(network)
    assert not any(name.endswith((".z", ".phi", "running_mean", "num_batches_tracked")) for name in fused.state_dict())


@pytest.mark.parametrize("joint_norm", [False, True])
def test_fusing_twice_is_refused(make_network, joint_norm):
    once = fuse(make_network(block="cspf", joint_norm=joint_norm))
    with pytest.raises(ValueError, match="fused already"):
        fuse(once)


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


ALIGNS = [
    *itertools.product(("add", "multiply", "concat", "project"), ("prediction", "pyramid"), ("vector",), ("level",)),
    *itertools.product(("add", "multiply", "concat"), ("pyramid",), ("network", "factors"), ("level",)),
    *itertools.product(("add", "multiply", "concat"), ("prediction",), ("vector",), ("anchor",)),
]
REFINES = list(itertools.product(("add", "multiply"), ("vector", "network", "factors"), ("all", "size")))
IMPLICITS = [
    Implicits(align=a, align_at=at, align_by=by, align_per=per, refine=r, refine_by=rby, refine_what=what)
    for (a, at, by, per), (r, rby, what) in zip(ALIGNS, itertools.cycle(REFINES), strict=False)
]
forms = pytest.mark.parametrize("implicit", IMPLICITS, ids=lambda i: f"{i.align}-{i.align_at}-{i.align_by}-{i.align_per}-{i.refine}")


@forms
@torch.inference_mode()
def test_every_form_of_implicit_knowledge_folds_away_exactly(make_network, implicit):
    network = make_network(implicit=implicit, tasks=TASKS).double()
    fused, image = fuse(network), torch.rand(2, 3, 64, 96).double()
    assert is_fused(fused)
    assert largest_difference(network(image), fused(image)) < 1e-12


class Recorder(TorchDispatchMode):
    """Count every operation that torch runs, by name and by the shape of what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        self.found[f"{operation} {getattr(result, 'shape', None)}"] += 1
        return result


def operations(network: nn.Module, device: str) -> Counter:
    with Recorder() as recorder, torch.no_grad():
        network(torch.empty(1, 3, 128, 128, device=device))
    return recorder.found


@pytest.mark.parametrize("name", PRESETS)
def test_a_fused_preset_has_exactly_the_operations_of_the_network_without_implicit_knowledge(name):
    config = PRESETS[name].network
    plain = replace(config, implicit=Implicits(align="none", refine="none"))
    with torch.device("meta"):
        anchors = torch.ones(config.levels, config.anchors_per_level, 2)
        whole, less = (fuse(Yolor(kind, 80, anchors, image_classes=3, keypoints=5)) for kind in (config, plain))
    assert operations(whole, "meta") == operations(less, "meta")


@pytest.mark.parametrize("implicit", [i for i in IMPLICITS if i.align_at == "prediction" or i.align in ("multiply", "project")])
def test_every_form_leaves_no_operation_behind_but_a_constant_on_a_padded_map(make_network, implicit):
    plain = Implicits(align="none", refine="none")
    found, expected = (operations(fuse(make_network(implicit=kind)), "cpu") for kind in (implicit, plain))
    assert found == expected
    assert sum(found.values()) > 100

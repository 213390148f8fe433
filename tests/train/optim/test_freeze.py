"""Frozen parts of a network: nothing of them changes, and the rest trains, resumes and is distributed as ever."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tiny_run import assert_equal_tensors, final_state, tiny_run, train_until_killed
from yolor_ray.config import TrainConfig
from yolor_ray.model.weights import load_weights
from yolor_ray.train.distributed import DistContext
from yolor_ray.train.learner import Learner
from yolor_ray.train.losses.assign import Targets
from yolor_ray.train.optim.freeze import freeze_parts

pytestmark = pytest.mark.usefixtures("undrawn")

IMAGES = torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
TARGETS = Targets(torch.tensor([0, 1]), torch.tensor([1, 2]), torch.tensor([[20.0, 20.0, 12.0, 14.0], [40.0, 30.0, 30.0, 28.0]]))
PARTS = {"none": set(), "backbone": {"backbone"}, "neck": {"backbone", "neck"}}


@pytest.fixture
def make_frozen_learner(make_learner):
    def make(freeze: str) -> Learner:
        template = make_learner(weight_decay=0.1, lr=0.1)
        freeze_parts(template.network, freeze)
        return Learner(template.network, template.config, template.schedule, template.replica)

    return make


def part_of(name: str) -> str:
    return name.partition(".")[0]


@pytest.mark.parametrize("freeze", ["none", "backbone", "neck"])
def test_frozen_weights_and_statistics_stay_and_all_others_learn(make_frozen_learner, freeze):
    learner = make_frozen_learner(freeze)
    before = {name: tensor.clone() for name, tensor in learner.network.state_dict().items()}
    for _ in range(3):
        learner.network.train()
        learner.learn(IMAGES, TARGETS, must_update=True)
    changed, averaged = (
        {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
        for network in (learner.network, learner.average.network)
    )
    learning = {"backbone", "neck", "head"} - PARTS[freeze]
    assert {part_of(name) for name in changed} == {part_of(name) for name in averaged} == learning
    norms = [module for module in learner.network.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {norm.training for norm in norms} == {freeze == "none"}


def test_frozen_parameters_have_no_gradient_no_momentum_and_no_weight_decay(make_frozen_learner):
    learner = make_frozen_learner("backbone")
    frozen = set(learner.network.backbone.parameters())
    optimized = {parameter for group in learner.optimizer.param_groups for parameter in group["params"]}
    assert optimized == set(learner.network.parameters()) - frozen
    terms = learner._backward(IMAGES, TARGETS, 1.0)
    assert terms and all(parameter.grad is None for parameter in frozen)


def test_autograd_records_nothing_of_the_frozen_parts(make_frozen_learner):
    network = make_frozen_learner("neck").network
    features = network.neck(network.backbone(torch.rand(2, 3, 64, 64)))
    assert not any(feature.requires_grad for feature in features)
    assert all(level.requires_grad for level in network.head(features))


@pytest.mark.filterwarnings("ignore:Grad strides do not match bucket view strides")
def test_a_distributed_replica_trains_without_the_frozen_parameters(make_frozen_learner, tmp_path):
    alone, distributed = make_frozen_learner("backbone"), make_frozen_learner("backbone")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        distributed.replica = DistContext(0, 2, torch.device("cpu")).wrap(distributed.network)
        for learner in (alone, distributed):
            for _ in range(3):
                learner.learn(IMAGES, TARGETS, must_update=True)
    finally:
        dist.destroy_process_group()
    for parameter, expected in zip(distributed.network.parameters(), alone.network.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected)


def frozen_run(folder: Path, name: str, pretrained: Path) -> TrainConfig:
    config = tiny_run(folder, name)
    optim = dataclasses.replace(config.optim, pretrained=str(pretrained), freeze="backbone", lr=0.1)
    return dataclasses.replace(config, optim=optim)


def test_a_frozen_run_keeps_the_pretrained_backbone_and_resumes_exactly(folder: Path, uninterrupted: Path, monkeypatch) -> None:
    source = load_weights(str(uninterrupted / "weights"))[0].state_dict()
    whole, killed = (frozen_run(folder, name, uninterrupted / "weights") for name in ("frozen", "frozen-killed"))
    tensors = final_state(Path(_train(whole)))[0]
    train_until_killed(killed, monkeypatch, 8)
    assert_equal_tensors(Path(_train(killed)), folder / "frozen")
    prefix = "optimizer/exp_avg/"
    updated = {part_of(name.removeprefix(prefix)) for name in tensors if name.startswith(prefix)}
    assert updated == {"neck", "head"}
    for name, tensor in source.items():
        for section in ("network", "average"):
            if part_of(name) == "backbone":
                assert torch.equal(tensors[f"{section}/{name}"], tensor), name
    learning = [name for name in source if name.startswith("neck.") and name.endswith("conv.weight")]
    assert learning and not any(torch.equal(tensors[f"network/{name}"], source[name]) for name in learning)


def _train(config: TrainConfig) -> str:
    from yolor_ray.train.run import train

    return train(config)["run"]

"""Weights of the tasks' losses: gradients of equal size on the shared features, missing tasks, detection alone, resume."""

import json

import pytest
import torch
from torch import nn

from yolor_ray.config import DataConfig, NetworkConfig, OptimConfig, TrainConfig
from yolor_ray.errors import IntegrityError
from yolor_ray.model.network import Yolor
from yolor_ray.train.checkpoint.checkpoint import Progress, resume, take_checkpoint, write_checkpoint
from yolor_ray.train.checkpoint.content import parse_state
from yolor_ray.train.distributed import DistContext
from yolor_ray.train.learner import Learner
from yolor_ray.train.optim.schedule import Schedule
from yolor_ray.train.optim.task_balance import DECAY, MEASURED_STEPS, TaskBalance


class Neck(nn.Module):
    """Two feature maps from one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x * self.weight, (x * self.weight).sum(dim=1)]


IMAGES = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.2, -0.3]])
SIZES = {"box": 0.5, "cls": 2.0, "pose": 40.0, "embed": 0.01}
TASKS = {"pose": 1.0, "embed": 1.0}


def loss_terms(neck: Neck, sizes: dict[str, float]) -> dict[str, torch.Tensor]:
    """Return a term per name: a factor times a function of the features that differs from term to term."""
    fine, coarse = neck(IMAGES)
    return {name: size * ((fine + n).square().sum() + coarse.sum() * n) for n, (name, size) in enumerate(sizes.items())}


def shared_gradient(neck: Neck, loss: torch.Tensor) -> torch.Tensor:
    fine, coarse = neck.features
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, (fine, coarse), retain_graph=True)])


@pytest.fixture
def neck() -> Neck:
    neck = Neck()
    neck.register_forward_hook(lambda module, _, features: setattr(module, "features", features))
    return neck


def test_the_gradient_of_each_task_has_the_size_of_detections(neck):
    balance = TaskBalance(neck, TASKS)
    terms = loss_terms(neck, SIZES)
    total = balance.balance(terms, step=0)
    expected = shared_gradient(neck, terms["box"] + terms["cls"])
    for task in TASKS:
        gradient = shared_gradient(neck, terms[task] * balance.weight(task))
        assert gradient.norm().item() == pytest.approx(expected.norm().item(), rel=1e-5)
    weighted = terms["box"] + terms["cls"] + sum(terms[task] * balance.weight(task) for task in TASKS)
    torch.testing.assert_close(total, weighted)


def test_a_gain_is_the_size_of_the_gradient_relative_to_detections(neck):
    balance = TaskBalance(neck, {"pose": 3.0, "embed": 0.0})
    terms = loss_terms(neck, SIZES)
    balance.balance(terms, step=0)
    expected = 3 * shared_gradient(neck, terms["box"] + terms["cls"]).norm().item()
    assert shared_gradient(neck, terms["pose"] * balance.weight("pose")).norm().item() == pytest.approx(expected, rel=1e-5)
    assert balance.weight("embed") == 0


def test_norms_are_means_over_measurements(neck):
    balance = TaskBalance(neck, TASKS)
    balance.balance(loss_terms(neck, SIZES), step=0)
    before = dict(balance.norms)
    for step in range(1, MEASURED_STEPS):
        balance.balance(loss_terms(neck, {**SIZES, "pose": 80.0}), step)
    assert balance.norms == before
    balance.balance(loss_terms(neck, {**SIZES, "pose": 80.0}), MEASURED_STEPS)
    assert balance.norms["pose"] == pytest.approx(before["pose"] * (DECAY + (1 - DECAY) * 2))
    assert balance.norms["detect"] == pytest.approx(before["detect"])


def test_a_task_without_annotations_keeps_its_norm_and_has_weight_1_before_the_first(neck):
    balance = TaskBalance(neck, TASKS)
    balance.balance(loss_terms(neck, {**SIZES, "embed": 0.0}), step=0)
    assert "embed" not in balance.norms and balance.weight("embed") == 1
    balance.balance(loss_terms(neck, SIZES), step=MEASURED_STEPS)
    known = balance.norms["embed"]
    balance.balance(loss_terms(neck, {**SIZES, "embed": 0.0}), step=2 * MEASURED_STEPS)
    assert balance.norms["embed"] == known > 0


def test_a_norm_that_is_not_finite_changes_nothing(neck):
    balance = TaskBalance(neck, TASKS)
    balance.balance(loss_terms(neck, SIZES), step=0)
    before = dict(balance.norms)
    balance.balance(loss_terms(neck, {**SIZES, "pose": float("nan")}), step=MEASURED_STEPS)
    assert balance.norms["pose"] == before["pose"]


def make_learner(tasks: tuple[str, ...], freeze: str = "none") -> Learner:
    network = NetworkConfig(
        stem="reorg", stem_width=8, widths=(8, 8, 8), depths=(1, 1, 1), levels=2, neck_depth=1, head="free", tasks=("detect", *tasks)
    )
    optim = OptimConfig(epochs=2, batch=2, nominal_batch=2, pretrained="weights", freeze=freeze)
    config = TrainConfig(network=network, data=DataConfig(image_px=64), optim=optim)
    yolor = Yolor(network, 2, keypoints=3).train()
    return Learner(yolor, config, Schedule(optim, 4), yolor)


def test_a_resumed_run_goes_on_with_the_norms(tmp_path):
    learner, progress = make_learner(("pose",)), Progress("digest")
    learner.balance.norms = {"detect": 1 / 3, "pose": 0.1}
    write_checkpoint(str(tmp_path), take_checkpoint(learner, progress), attempt=1)
    resumed = make_learner(("pose",))
    resume(str(tmp_path), resumed, progress, DistContext(0, 1, torch.device("cpu")))
    assert resumed.balance.norms == {"detect": 1 / 3, "pose": 0.1}


@pytest.mark.parametrize("norms", [{"pose": 0}, {"pose": "1"}, {"pose": float("nan")}, [1.0]])
def test_norms_that_no_run_writes_are_refused(norms):
    state = {**take_checkpoint(make_learner(("pose",)), Progress("digest")).state, "task_norms": norms}
    with pytest.raises(IntegrityError, match=r"task_norms: found .*, expected norms above 0 by task"):
        parse_state("state.json", json.dumps(state).encode())


def test_detection_alone_and_a_frozen_neck_are_not_balanced():
    assert make_learner(()).balance is None
    assert make_learner(("pose",), freeze="neck").balance is None
    assert make_learner(("pose",), freeze="backbone").balance is not None

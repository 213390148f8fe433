"""A training run of three epochs in this process that takes seconds, and simulated kills of it."""

from pathlib import Path

import pytest
import torch

from yolor_ray.config import (
    AugmentConfig,
    ClusterConfig,
    DataConfig,
    NetworkConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)
from yolor_ray.train.checkpoint.checkpoint import newest_checkpoint
from yolor_ray.train.learner import Learner
from yolor_ray.train.run import train

TINY = NetworkConfig(stem="reorg", stem_width=8, widths=(8, 16, 16, 16), depths=(1, 1, 1, 1), neck_depth=1)


def tiny_run(folder: Path, name: str, **run: object) -> TrainConfig:
    return TrainConfig(
        network=TINY,
        data=DataConfig(train="scenes:21", val="scenes:5", image_px=64),
        augment=AugmentConfig(mixup=0.3, multi_scale=0.3, close_mosaic_epochs=1),
        optim=OptimConfig(epochs=3, batch=4, nominal_batch=8, lr=0.02),
        cluster=ClusterConfig(compute_threads=1),
        run=RunConfig(storage=str(folder), name=name, validate_epochs=2, checkpoint_epochs=1, **run),
    )


class Killed(BaseException):
    """A simulated kill inside the loop."""


def kill_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    learn = Learner.learn

    def learn_or_die(self: Learner, *args: object, **kwargs: object) -> object:
        if self.step >= steps:
            raise Killed
        return learn(self, *args, **kwargs)

    monkeypatch.setattr(Learner, "learn", learn_or_die)


def train_until_killed(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    with monkeypatch.context() as patch:
        kill_after(patch, steps)
        with pytest.raises(Killed):
            train(config)


def final_state(run: Path) -> tuple[dict[str, torch.Tensor], dict]:
    checkpoint = newest_checkpoint(str(run))
    assert checkpoint is not None
    return checkpoint


def assert_equal_tensors(run: Path, expected_run: Path) -> None:
    tensors, expected = final_state(run)[0], final_state(expected_run)[0]
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensors[name], tensor), name

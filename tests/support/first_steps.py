"""First steps of a training run, without the rest of it."""

import numpy as np
import pytest
import torch

from yolor_ray.config import TrainConfig
from yolor_ray.train.learner import Learner
from yolor_ray.train.run import train


class _Stopped(BaseException):
    """End of training after its first steps."""


def first_steps(config: TrainConfig, monkeypatch, steps: int = 3) -> tuple[dict[str, torch.Tensor], list[np.ndarray]]:
    """Return the initial weights of a run and the images of its first steps."""
    weights: dict[str, torch.Tensor] = {}
    images: list[np.ndarray] = []

    def learn(self: Learner, batch: torch.Tensor, targets: object, **_: object) -> None:
        if not images:
            weights.update({name: tensor.clone() for name, tensor in self.network.state_dict().items()})
        images.append(batch.numpy().copy())
        self.step += 1
        if len(images) == steps:
            raise _Stopped
        return None

    with monkeypatch.context() as patch, pytest.raises(_Stopped):
        patch.setattr(Learner, "learn", learn)
        patch.setattr("yolor_ray.train.epoch_meter.EpochMeter.add", lambda *_: None)
        train(config)
    return weights, images

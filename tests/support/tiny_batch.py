"""A batch of two images for the learner of a tiny network, and comparisons of its weights."""

import torch

from yolor_ray.config import LossConfig
from yolor_ray.train.learner import Learner
from yolor_ray.train.losses.assign import Targets

IMAGES = torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
TARGETS = Targets(torch.tensor([0, 1]), torch.tensor([1, 2]), torch.tensor([[20.0, 20.0, 12.0, 14.0], [40.0, 30.0, 30.0, 28.0]]))
INFINITE_LOSS = LossConfig(objectness=float("inf"))


def weights(learner: Learner) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in learner.network.parameters()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))

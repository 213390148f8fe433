"""A tiny network and what trains it."""

from collections.abc import Callable

import pytest
import torch

from yolor_ray.config import AugmentConfig, DataConfig, LossConfig, NetworkConfig, OptimConfig, TrainConfig
from yolor_ray.model.network import Yolor
from yolor_ray.train.learner import Learner
from yolor_ray.train.optim import Schedule

TINY = NetworkConfig(stem="reorg", stem_width=8, widths=(16, 24, 32), depths=(1, 1, 1), levels=2, neck_depth=1)
ANCHORS = torch.tensor([[[8.0, 10.0], [16.0, 12.0], [12.0, 24.0]], [[30.0, 30.0], [60.0, 32.0], [40.0, 80.0]]])


@pytest.fixture
def make_learner() -> Callable[..., Learner]:
    """Return a function that makes a learner of a tiny network at 64 px, four batches of two images per epoch."""

    def make(
        loss: LossConfig | None = None,
        augment: AugmentConfig | None = None,
        classes: int = 3,
        anchors: torch.Tensor = ANCHORS,
        **optim: float,
    ) -> Learner:
        settings = OptimConfig(**{"epochs": 5, "batch": 2, "nominal_batch": 2, "warmup_epochs": 0.0, **optim})
        config = TrainConfig(
            network=TINY, data=DataConfig(image_px=64), augment=augment or AugmentConfig(), loss=loss or LossConfig(), optim=settings
        )
        torch.manual_seed(0)
        network = Yolor(TINY, classes, anchors).train()
        return Learner(network, config, Schedule(settings, 4), network)

    return make

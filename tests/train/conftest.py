"""Fixtures of the training tests: a learner of a tiny network, and a finished run."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from yolor_ray.config import AugmentConfig, DataConfig, LossConfig, NetworkConfig, OptimConfig, TrainConfig
from yolor_ray.model.network import Yolor
from yolor_ray.train.learner import Learner
from yolor_ray.train.optim.schedule import Schedule

TINY = NetworkConfig(stem="reorg", stem_width=8, widths=(16, 24, 32), depths=(1, 1, 1), levels=2, neck_depth=1)
ANCHORS = torch.tensor([[[8.0, 10.0], [16.0, 12.0], [12.0, 24.0]], [[30.0, 30.0], [60.0, 32.0], [40.0, 80.0]]])


@pytest.fixture
def make_learner() -> Callable[..., Learner]:
    """Return a factory of learners: a tiny network at 64 px, four batches of two images per epoch."""

    def make(
        loss: LossConfig | None = None,
        augment: AugmentConfig | None = None,
        classes: int = 3,
        anchors: torch.Tensor = ANCHORS,
        **optim: float | str,
    ) -> Learner:
        settings = OptimConfig(
            **{"epochs": 5, "batch": 2, "nominal_batch": 2, "warmup_epochs": 0.0, "optimizer": "sgd", "lr": 0.01, **optim}
        )
        config = TrainConfig(
            network=TINY, data=DataConfig(image_px=64), augment=augment or AugmentConfig(), loss=loss or LossConfig(), optim=settings
        )
        torch.manual_seed(0)
        network = Yolor(TINY, classes, anchors).train()
        return Learner(network, config, Schedule(settings, 4), network)

    return make


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the runs."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def uninterrupted(folder: Path) -> Path:
    """Return the folder of a tiny run that finished undisturbed."""
    # ray.train takes 3 s to import, which most tests of this folder do not need.
    from tiny_run import tiny_run
    from yolor_ray.train.run import train

    return Path(train(tiny_run(folder, "uninterrupted"))["run"])

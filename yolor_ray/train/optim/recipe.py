"""Choose the settings of the optimizer that follow from a run's number of updates.

The published recipes are those of YOLOR for COCO. The adaptive recipe limits warm-up, weight average and the epochs without mosaic to
shares of the run.
"""

import logging
import math
from dataclasses import replace
from typing import Literal

from yolor_ray.config import AugmentConfig, OptimConfig, TrainConfig
from yolor_ray.config.train import PUBLISHED_RECIPES
from yolor_ray.train.optim.schedule import Schedule

logger = logging.getLogger(__name__)

LONG_RUN_UPDATES = 10_000
"""Updates from which networks with anchors take SGD, as published; SGD needs more updates than AdamW."""
CLOSED_MOSAIC_SHARE = 1 / 8
"""Maximum share of the epochs without mosaic."""
FINETUNE_AUGMENT = {"scale": 0.8, "mixup": 0.2}
"""Augmentation of the second phase of the published runs at 1280 px."""


def resolve(config: TrainConfig, steps_per_epoch: int) -> TrainConfig:
    """Return the settings of a run with values in place of automatic choices, and log the choices.

    Args:
        config: settings of the run.
        steps_per_epoch: batches of an epoch over all workers together.
    """
    optim, augment = config.optim, config.augment
    updates = Schedule(optim, steps_per_epoch).updates
    if optim.recipe == "adaptive":
        optim, augment = _adapt(config, updates), _limit_closed_mosaic(augment, optim.epochs)
    else:
        changes = FINETUNE_AUGMENT if optim.recipe == "published-finetune" else {}
        optim, augment = replace(optim, **PUBLISHED_RECIPES[optim.recipe]), replace(augment, close_mosaic_epochs=0, **changes)
    logger.info(
        "event=recipe recipe=%s optimizer=%s lr=%g updates=%d close_mosaic_epochs=%d",
        *(optim.recipe, optim.optimizer, optim.lr, updates, augment.close_mosaic_epochs),
    )
    return replace(config, optim=optim, augment=augment)


def _adapt(config: TrainConfig, updates: int) -> OptimConfig:
    automatic: Literal["adamw", "sgd"] = "sgd" if config.network.head == "anchors" and updates >= LONG_RUN_UPDATES else "adamw"
    chosen = replace(config.optim, optimizer=automatic if config.optim.optimizer == "auto" else config.optim.optimizer)
    return replace(chosen, lr=replace(config, optim=chosen).peak_lr)


def _limit_closed_mosaic(augment: AugmentConfig, epochs: int) -> AugmentConfig:
    return replace(augment, close_mosaic_epochs=min(augment.close_mosaic_epochs, math.ceil(epochs * CLOSED_MOSAIC_SHARE)))

"""Choose the settings of the optimizer that follow from a run's number of updates.

The published recipe is YOLOR's own for 300 epochs of COCO. The adaptive recipe limits warm-up, weight average and the epochs without mosaic
to shares of the run.
"""

import logging
import math
from dataclasses import replace
from typing import Literal

from yolor_ray.config import OptimConfig, TrainConfig
from yolor_ray.config.train import PUBLISHED_RECIPE

logger = logging.getLogger(__name__)

LONG_RUN_UPDATES = 10_000
"""Updates from which SGD, which needs more of them, is chosen instead of AdamW."""
CLOSED_MOSAIC_SHARE = 1 / 8
"""Maximum share of the epochs without mosaic."""


def resolve(config: TrainConfig, steps_per_epoch: int) -> TrainConfig:
    """Return the settings of a run with values in place of automatic choices, and log the choices.

    Args:
        config: settings of the run.
        steps_per_epoch: batches of an epoch over all workers together.
    """
    updates = steps_per_epoch * config.optim.epochs * config.optim.batch // max(config.optim.nominal_batch, config.optim.batch)
    is_published = config.optim.recipe == "published"
    optim = replace(config.optim, **PUBLISHED_RECIPE) if is_published else _adapt(config.optim, updates)
    closed = 0 if is_published else min(config.augment.close_mosaic_epochs, math.ceil(optim.epochs * CLOSED_MOSAIC_SHARE))
    logger.info(
        "event=recipe recipe=%s optimizer=%s lr=%g updates=%d close_mosaic_epochs=%d",
        *(optim.recipe, optim.optimizer, optim.lr, updates, closed),
    )
    return replace(config, optim=optim, augment=replace(config.augment, close_mosaic_epochs=closed))


def _adapt(optim: OptimConfig, updates: int) -> OptimConfig:
    automatic: Literal["adamw", "sgd"] = "adamw" if updates < LONG_RUN_UPDATES else "sgd"
    optimizer = automatic if optim.optimizer == "auto" else optim.optimizer
    chosen = replace(optim, optimizer=optimizer)
    return replace(chosen, lr=chosen.peak_lr)

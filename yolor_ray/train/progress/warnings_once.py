"""Warn of a training that learns little, with the likely reasons. Each warning comes once per run."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from yolor_ray.pack.scenes_url import SCENES_PREFIX
from yolor_ray.train.context import TrainContext

logger = logging.getLogger(__name__)

START_SHARE = 1 / 3
"""Share of the epochs after which a network has learned something."""
LOW_AP = 0.01
WORSE_RATIO = 2.0
"""Validation loss relative to the training loss from which the network has learned the training images by heart. Augmented training
images usually cost more than validation images."""
FEW_UPDATES = 1000
SMALL_BOX_PX = 8.0
"""Shorter side of the median box under which the network sees little of an object: the finest cells have 8 px."""

Row = Mapping[str, Any]


def warn_of_little_learning(rows: Sequence[Row], context: TrainContext, updates: int) -> None:
    """Warn, after a validation, of an AP near 0 and of a validation that is much worse than training.

    Args:
        rows: metrics of each finished epoch of the run.
        context: inputs of the run.
        updates: updates of the weights so far.

    """
    epochs = context.config.optim.epochs
    row = rows[-1]
    if _is_first(rows, lambda row: "AP" in row and row["epoch"] >= epochs * START_SHARE and 0 <= row["AP"] < LOW_AP):
        # The URLs of the settings: the training set itself may be a copy without the held-out images.
        urls = [url.strip() for url in context.config.data.train.split(",")]
        checks = [f"yolor-ray pack check {url}; " for url in urls if not url.startswith(SCENES_PREFIX)]
        advice = f"{''.join(checks)}report/predictions.png has the annotations as dashed boxes"
        logger.warning(
            "event=low_accuracy epoch=%d/%d AP=%.4f likely='%s' advice='%s'",
            *(row["epoch"], epochs, row["AP"], "; ".join(_likely_reasons(context, round(updates * epochs / row["epoch"]))), advice),
        )
    if _is_first(rows, lambda row: row["epoch"] >= epochs * START_SHARE and row.get("val_loss", 0) > WORSE_RATIO * row["loss"]):
        reason = "the network knows the training images by heart, or the validation images are of another kind"
        advice = "more varied images, more augmentation, optim.pretrained, or fewer epochs with optim.patience"
        logger.warning(
            "event=validation_much_worse epoch=%d/%d val_loss=%.4g loss=%.4g reason='%s' advice='%s'",
            *(row["epoch"], epochs, row["val_loss"], row["loss"], reason, advice),
        )


def _is_first(rows: Sequence[Row], condition: Callable[[Row], bool]) -> bool:
    """Return True if the condition holds for the last row and for none before, so that a resumed run does not warn again."""
    return condition(rows[-1]) and not any(map(condition, rows[:-1]))


def _likely_reasons(context: TrainContext, updates: int) -> list[str]:
    """Return the likely reasons of a low AP, the most specific first; `updates` are those of the whole run."""
    config = context.config
    reasons = []
    if 0 < context.box_px < SMALL_BOX_PX:
        reasons.append(f"half of the boxes are under {context.box_px:.1f} px at data.image_px {config.data.image_px}")
    if updates < FEW_UPDATES:
        reasons.append(f"only {updates} updates in the whole run, {FEW_UPDATES} or more are usual: raise optim.epochs or lower optim.batch")
    # The recipe has replaced 0 by the automatic rate.
    if config.optim.recipe == "adaptive" and config.optim.lr not in (0, config.automatic_lr):
        reasons.append(f"optim.lr {config.optim.lr:g} is set by hand, 0 chooses {config.automatic_lr:g}")
    return [*reasons, "labels that do not fit the images"]

"""Score labels of whole images: average precision of each label, the mean over labels, and F1.

Legend: I images, M labels. A number is -1 where there is nothing to measure on, as in COCO's table.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from yolor_ray.evaluate.coco import NO_VALUE

THRESHOLD = 0.5
"""Least probability of a label that counts as predicted for F1."""


@dataclass(frozen=True)
class LabelScore:
    """Numbers of one label."""

    AP: float
    """Average precision; -1 if no image has the label."""
    images: int
    """Number of images with the label."""


def label_metrics(probabilities: np.ndarray, truth: np.ndarray, names: Sequence[str]) -> tuple[dict[str, float], dict[str, LabelScore]]:
    """Return mAP and F1, and the score of each label.

    mAP is the mean over the labels that an image has. F1 is micro-averaged: over all pairs of image and label together, at 0.5.

    Args:
        probabilities: (I, M), 0 to 1.
        truth: (I, M): 1 the image has the label, 0 the image lacks the label, NaN unknown and not counted.
        names: M names.
    """
    annotated = ~np.isnan(truth)
    positive = truth == 1
    scores = {
        name: LabelScore(average_precision(probabilities[annotated[:, m], m], positive[annotated[:, m], m]), int(positive[:, m].sum()))
        for m, name in enumerate(names)
    }
    measured = [score.AP for score in scores.values() if score.images]
    return {"mAP": float(np.mean(measured)) if measured else NO_VALUE, "F1": _f1(probabilities[annotated], positive[annotated])}, scores


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return the sum over distinct scores, in descending order, of precision times the gain of recall; -1 without positives.

    This is the area under the steps of all points without any envelope, as scikit-learn's `average_precision_score` defines it.
    Equal scores are one point.
    """
    if not positive.any():
        return NO_VALUE
    order = np.argsort(-scores, kind="stable")
    last_of_equals = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(positive[order])[last_of_equals]
    return float((np.diff(hits, prepend=0) * hits / (last_of_equals + 1)).sum() / positive.sum())


def _f1(probabilities: np.ndarray, positive: np.ndarray) -> float:
    predicted = probabilities >= THRESHOLD
    total = int(predicted.sum() + positive.sum())
    return 2 * float((predicted & positive).sum()) / total if total else NO_VALUE

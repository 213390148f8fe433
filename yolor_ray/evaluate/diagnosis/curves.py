"""Curves over the confidence: precision, recall and F1 score at IoU .50, average precision, and calibration.

Legend: D detections of one class.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from yolor_ray.evaluate.diagnosis.comparison import Comparison, ImageBoxes, Kind

RECALLS = np.linspace(0, 1, 101)
"""Recalls at which average precision takes the precision, as COCO does."""
CALIBRATION_BINS = 10
"""Bins of equal width over the confidences from 0 to 1."""


@dataclass(frozen=True)
class Curve:
    """Numbers of one class at each confidence threshold, from the highest."""

    confidences: np.ndarray
    """(D,) float64, descending."""
    precision: np.ndarray
    """(D,) share of right detections among those with at least this confidence."""
    recall: np.ndarray
    """(D,) share of the objects that these detections find."""
    average_precision: float
    """AP50."""

    @property
    def f1(self) -> np.ndarray:
        """(D,) harmonic mean of precision and recall."""
        return 2 * self.precision * self.recall / np.maximum(self.precision + self.recall, 1e-9)

    def taken(self, threshold: float) -> int:
        """Return the number of detections whose confidence reaches a threshold."""
        return int((self.confidences >= threshold).sum())


@dataclass(frozen=True)
class CalibrationBin:
    """Detections of all classes with similar confidences."""

    confidence: float
    """Mean confidence."""
    precision: float
    """Share of right detections."""
    count: int


def class_curves(images: Sequence[tuple[ImageBoxes, Comparison]], classes: int) -> list[Curve | None]:
    """Return the curve of each class; None for a class without objects or without detections."""
    curves: list[Curve | None] = []
    for label in range(classes):
        own = [(image.labels == label) & (comparison.kinds != Kind.IGNORED) for image, comparison in images]
        confidences = np.concatenate([image.confidences[mask] for (image, _), mask in zip(images, own, strict=True)] or [np.zeros(0)])
        right = [comparison.kinds[mask] == Kind.RIGHT for (_, comparison), mask in zip(images, own, strict=True)]
        objects = sum(int(((image.truth_labels == label) & ~image.crowd).sum()) for image, _ in images)
        has_curve = objects and len(confidences)
        curves.append(_curve(confidences, np.concatenate(right), objects) if has_curve else None)
    return curves


def _curve(confidences: np.ndarray, right: np.ndarray, objects: int) -> Curve:
    order = np.argsort(-confidences, kind="stable")
    hits = np.cumsum(right[order])
    precision, recall = hits / np.arange(1, len(hits) + 1), hits / objects
    return Curve(confidences[order], precision, recall, average_precision(confidences, right, objects))


def average_precision(confidences: np.ndarray, right: np.ndarray, objects: int) -> float:
    """Return COCO's average precision at one IoU: the mean over 101 recalls of the best precision at that recall or a higher one.

    Args:
        confidences: (D,).
        right: (D,) bool.
        objects: number of annotated objects, 1 or more.
    """
    hits = np.cumsum(right[np.argsort(-confidences, kind="stable")])
    precision, recall = hits / np.arange(1, len(hits) + 1), hits / objects
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.append(best, 0.0)[np.searchsorted(recall, RECALLS, side="left")].mean())


def calibration(images: Sequence[tuple[ImageBoxes, Comparison]]) -> tuple[list[CalibrationBin], float]:
    """Return the bins with detections, and the expected calibration error: the mean distance of confidence and precision."""
    counted = [comparison.kinds != Kind.IGNORED for _, comparison in images]
    confidences = np.concatenate([image.confidences[mask] for (image, _), mask in zip(images, counted, strict=True)] or [np.zeros(0)])
    right = [comparison.kinds[mask] == Kind.RIGHT for (_, comparison), mask in zip(images, counted, strict=True)]
    is_right = np.concatenate(right or [np.zeros(0, bool)])
    bins = []
    numbers = np.minimum((confidences * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    for number in np.unique(numbers):
        inside = numbers == number
        bins.append(CalibrationBin(float(confidences[inside].mean()), float(is_right[inside].mean()), int(inside.sum())))
    error = sum(abs(item.confidence - item.precision) * item.count for item in bins) / max(len(confidences), 1)
    return bins, float(error)

"""Compare two weights on the same images: differences of metrics with intervals, and the images that changed most.

The interval is that of a paired bootstrap: both weights are measured on the same resamples of the images. It is centred on the measured
difference, because resampling with repeated images biases AP.
Legend: K classes, M metrics, R resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from yolor_ray.data.shards.dataset import Dataset
from yolor_ray.errors import DataError
from yolor_ray.evaluate import coco
from yolor_ray.evaluate.against.bootstrap import (
    METRICS,
    draw_resamples,
    half_width,
    mean_of_classes,
    metric_names,
    resampled_class_metrics,
)
from yolor_ray.evaluate.detections import to_parquet
from yolor_ray.evaluate.diagnosis.comparison import Comparison, ImageBoxes, compare_all, read_images
from yolor_ray.evaluate.diagnosis.findings import rank_images
from yolor_ray.evaluate.examples import MIN_CONFIDENCE
from yolor_ray.evaluate.metrics import EvalResult
from yolor_ray.evaluate.predict import make_task_truth, read_annotations

CLASS_METRICS = METRICS[:3]
"""Metrics of boxes that are compared class by class: AP, AP50 and AP75."""
RESAMPLES = 1000
SEED = 0
BOXES_OF_BOTH = 2_000_000
"""Most detections of a comparison with the full number of resamples; more detections have fewer resamples."""


@dataclass(frozen=True)
class Difference:
    """A metric of both weights, and their difference with its 95 % interval."""

    value: float
    """Metric of the weights; NaN where there is nothing to measure on."""
    other: float
    """Metric of the weights that they are compared with."""
    low: float
    """Lower end of the interval of `value - other`; NaN where unknown."""
    high: float

    @property
    def difference(self) -> float:
        """Value minus other."""
        return self.value - self.other

    @property
    def beyond_noise(self) -> bool:
        """True if the interval is known and excludes 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class ChangedImage:
    """F1 scores of one image at the best confidences of each weights."""

    image_id: int
    name: str
    score: float
    other: float


@dataclass(frozen=True)
class WeightsDifference:
    """Comparison of two weights on one dataset."""

    names: tuple[str, str]
    """URLs of the weights, and of those that they are compared with."""
    metrics: dict[str, Difference]
    classes: dict[str, dict[str, Difference]]
    """AP, AP50 and AP75 of boxes: by metric, then by class."""
    images: list[ChangedImage]
    """Images whose F1 score differs, those with the largest change first."""
    boxes: tuple[dict[int, tuple[ImageBoxes, Comparison]], dict[int, tuple[ImageBoxes, Comparison]]]
    """Detections of both weights over the best confidences of their classes, by image id."""

    def metrics_json(self) -> dict[str, Any]:
        """Return the differences of the metrics as JSON."""
        return difference_json(self.metrics)


def compare_results(
    dataset: Dataset, result: EvalResult, other: EvalResult, other_classes: Sequence[str], names: tuple[str, str]
) -> WeightsDifference:
    """Compare the results of two weights on the same images.

    Args:
        dataset: the dataset, with the classes of the weights.
        result: result of the weights.
        other: result of the weights to compare with.
        other_classes: classes of the other weights, in their order.
        names: URLs of both weights.

    Raises:
        DataError: the weights have different classes.
    """
    rows = aligned_rows(other.rows, other_classes, dataset.classes, names[1])
    task_rows = {task: aligned_rows(own, other_classes, dataset.classes, names[1]) for task, own in other.task_rows.items()}
    metrics, classes = differences(dataset, result, replace(other, rows=rows, task_rows=task_rows))
    compared = []
    for item, own_rows in ((result, result.rows), (other, rows)):
        scores = [item.boxes.classes[name].confidence for name in dataset.classes]
        thresholds = np.array([MIN_CONFIDENCE if score < 0 else score for score in scores])
        compared.append(compare_all(read_images(dataset, to_parquet(own_rows)), thresholds))
    by_id = [{image.image_id: (image, comparison) for image, comparison in images} for images in compared]
    return WeightsDifference(names, metrics, classes, changed_images(*compared), (by_id[0], by_id[1]))


def differences(dataset: Dataset, result: EvalResult, other: EvalResult) -> tuple[dict[str, Difference], dict[str, dict[str, Difference]]]:
    """Return the differences by metric, and those of CLASS_METRICS of boxes by metric and class.

    COCO's precisions of boxes, masks and keypoints have an interval; recalls and metrics of other tasks have none.

    Args:
        dataset: the dataset, with the classes of the weights.
        result: result of the weights.
        other: result of the weights to compare with, with the same classes in the same order.
    """
    records = read_annotations(dataset)
    count = max(min(RESAMPLES, RESAMPLES * BOXES_OF_BOTH // max(len(result.rows) + len(other.rows), 1)), 100)
    draws = draw_resamples(len(records), count, SEED)
    # The first row of weights measures the images as they are.
    weights = np.concatenate((np.ones((1, len(records)), draws.dtype), draws))
    halves: dict[str, float] = {}
    classes: dict[str, dict[str, Difference]] = {}
    for task in [task for task in coco.IOU_TYPES if task in result.rows_by_task and task in other.rows_by_task]:
        truth = make_task_truth(records, dataset.classes, task)
        annotated = weights[:, [image["id"] for image in truth["images"]]]
        own, others = (resampled_class_metrics(truth, item.rows_by_task[task], annotated, coco.IOU_TYPES[task]) for item in (result, other))
        total = mean_of_classes(own) - mean_of_classes(others)
        halves |= {name: half_width(values) for name, values in zip(metric_names(task), total[1:].T, strict=True)}
        if task == "detect":
            classes = {name: _class_differences(dataset.classes, own[:, m], others[:, m]) for m, name in enumerate(CLASS_METRICS)}
    metrics = {
        name: _difference(result.metrics[name], other.metrics[name], halves.get(name, np.nan))
        for name in result.metrics
        if name in other.metrics
    }
    return metrics, classes


def _class_differences(names: Sequence[str], values: np.ndarray, others: np.ndarray) -> dict[str, Difference]:
    """Return the differences by class from a metric on the images as they are and on resamples, (K, 1 + R)."""
    # Classes stand in the order of their category ids.
    return {
        name: _difference(value[0], other[0], half_width(value[1:] - other[1:]))
        for name, value, other in zip(names, values, others, strict=True)
    }


def _difference(value: float, other: float, half: float) -> Difference:
    value, other = coco.value_or(value, np.nan), coco.value_or(other, np.nan)
    return Difference(value, other, value - other - half, value - other + half)


def changed_images(images: Sequence[tuple[ImageBoxes, Comparison]], others: Sequence[tuple[ImageBoxes, Comparison]]) -> list[ChangedImage]:
    """Return the images whose F1 score differs between both weights, those with the largest change first."""
    other_scores = {image.image_id: image.score for image in rank_images(others)}
    changed = [
        ChangedImage(image.image_id, image.name, image.score, other_scores[image.image_id])
        for image in rank_images(images)
        if image.score != other_scores[image.image_id]
    ]
    return sorted(changed, key=lambda image: (-abs(image.score - image.other), image.name))


def aligned_rows(rows: Sequence[coco.ResultRow], classes: Sequence[str], target: Sequence[str], weights: str) -> list[coco.ResultRow]:
    """Return result rows with the category ids of `target`.

    Raises:
        DataError: the weights have other classes.
    """
    if set(classes) != set(target):
        differing = ", ".join(sorted(set(classes) ^ set(target)))
        raise DataError(f"{weights}: found the classes {', '.join(classes)}, expected those of the other weights; only one has {differing}")
    labels = [target.index(name) for name in classes]
    return [row | {"category_id": labels[row["category_id"]]} for row in rows]


def difference_json(items: Mapping[str, Difference]) -> dict[str, Any]:
    """Return differences as JSON, with null for unknown numbers."""
    return {
        name: {key: _or_null(getattr(item, key)) for key in ("value", "other", "difference", "low", "high")} for name, item in items.items()
    }


def _or_null(number: float) -> float | None:
    return number if np.isfinite(number) else None

"""Bootstrap over validation images: COCO metrics of the same detections on resamples of their images.

hotcoco matches detections with objects once. Each resample then only weights the images, which gives the same number as a dataset
with each image repeated as often as its weight.
Legend: R resamples, I images, K classes, M metrics, D detections, J true positives, T IoU thresholds.
"""

from collections import defaultdict
from statistics import NormalDist
from typing import Any

import numpy as np
from scipy import sparse

from yolor_ray.evaluate import coco
from yolor_ray.evaluate.scorer import IouType

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
"""Metrics of boxes and of masks that are resampled, in the order of every axis M."""
KEYPOINT_METRICS = ("AP", "AP50", "AP75", "APm", "APl")
"""The same of keypoints; COCO has no number for small objects."""
CONFIDENCE = 0.95
RESAMPLES_PER_CHUNK = 256
"""Bounds the memory, and keeps small datasets in the processor's cache."""
RECALLS = np.linspace(0, 1, 101)
IOU_THRESHOLDS = 10
"""Number of thresholds: .50, .55 to .95."""
IOU75_INDEX = 5
"""Index of threshold .75."""


def metric_names(task: str) -> list[str]:
    """Return the names of a task's metrics that are resampled, as `EvalResult.metrics` has them, in the order of every axis M."""
    names = KEYPOINT_METRICS if task == "pose" else METRICS
    return [name if task == "detect" else f"{task}/{name}" for name in names]


def draw_resamples(images: int, count: int, seed: int) -> np.ndarray:
    """Return the count of each image in each of `count` resamples with replacement, (R, I); every row sums to `images`."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=count)


def half_width(values: np.ndarray) -> float:
    """Return half the width of the 95 % interval of a number from its values on resamples, (R,); NaN of fewer than two finite values."""
    finite = values[np.isfinite(values)]
    return float(NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * finite.std(ddof=1)) if len(finite) > 1 else np.nan


def resampled_metrics(truth: dict[str, Any], rows: list[coco.ResultRow], weights: np.ndarray, iou_type: IouType = "bbox") -> np.ndarray:
    """Return METRICS, or KEYPOINT_METRICS, for each row of weights, (R, M); NaN where a resample has no object to measure on.

    See `resampled_class_metrics`.
    """
    return mean_of_classes(resampled_class_metrics(truth, rows, weights, iou_type))


def mean_of_classes(metrics: np.ndarray) -> np.ndarray:
    """Return the mean over the classes that have objects, (R, M), of metrics (K, M, R)."""
    return _finite_mean(metrics).T


def resampled_class_metrics(
    truth: dict[str, Any], rows: list[coco.ResultRow], weights: np.ndarray, iou_type: IouType = "bbox"
) -> np.ndarray:
    """Return METRICS of each class for each row of weights, (K, M, R); NaN where a resample has no object to measure on.

    Keypoints have KEYPOINT_METRICS in place of METRICS.

    Args:
        truth: COCO's annotations, as `coco.score` takes them.
        rows: COCO's results; the copies of a detection that an image's weight makes are ranked next to each other.
        weights: (R, I) count of each image, in the order of truth["images"].
        iou_type: kind of comparison.

    Raises:
        DataError: as `coco.measure`.

    """
    scorer = coco.match_detections(truth, rows, iou_type)
    columns = {image["id"]: index for index, image in enumerate(truth["images"])}
    starts = range(0, len(weights), RESAMPLES_PER_CHUNK)
    chunks = [np.ascontiguousarray(weights[i : i + RESAMPLES_PER_CHUNK].T, np.float64) for i in starts]
    matches = defaultdict(list)
    for match in scorer.eval_imgs:
        if match:
            matches[match["category_id"], tuple(match["aRng"])].append(match)
    classes = []
    for category in scorer.params.cat_ids:
        precisions = [_precisions(matches[category, tuple(area)], columns, chunks) for area in scorer.params.area_rng]
        all_areas = precisions[0]
        classes.append(
            np.stack([all_areas.mean(axis=0), all_areas[0], all_areas[IOU75_INDEX], *(area.mean(axis=0) for area in precisions[1:])])
        )
    return np.array(classes).reshape(-1, len(metric_names(coco.TASKS[iou_type])), len(weights))


def _finite_mean(values: np.ndarray) -> np.ndarray:
    """Return the mean of the finite values over the first axis; NaN where there is no finite value."""
    finite = np.isfinite(values)
    count = finite.sum(axis=0)
    return np.where(count > 0, np.where(finite, values, 0).sum(axis=0) / np.maximum(count, 1), np.nan)


def _precisions(matches: list[dict[str, Any]], columns: dict[int, int], chunks: list[np.ndarray]) -> np.ndarray:
    """Return the average precision (T, R) of one class and range of areas from the matches of its images.

    Args:
        matches: items of hotcoco's `eval_imgs`.
        columns: index of each image by its id.
        chunks: weights, each (I, some of R).

    """
    if not matches:
        return np.full((IOU_THRESHOLDS, sum(w.shape[1] for w in chunks)), np.nan)
    image_columns = np.array([columns[match["image_id"]] for match in matches])
    objects = np.zeros(len(columns))
    objects[image_columns] = [np.count_nonzero(np.array(match["gtIgnore"]) == 0) for match in matches]
    scores = np.concatenate([match["dtScores"] for match in matches])
    order = np.argsort(-scores, kind="mergesort")
    images = np.repeat(image_columns, [len(match["dtScores"]) for match in matches])[order]
    is_matched, ignored = (np.concatenate([match[key] for match in matches], axis=1)[:, order] > 0 for key in ("dtMatches", "dtIgnore"))
    return np.stack([_precision(images[c], m[c], objects, chunks) for m, c in zip(is_matched, ~ignored, strict=True)])


def _precision(images: np.ndarray, is_hit: np.ndarray, objects: np.ndarray, chunks: list[np.ndarray]) -> np.ndarray:
    """Return the average precision (R,) from the images (D,) of the ranked detections and their true-positive flags (D,).

    Precision peaks at true positives, so only these J ranks are evaluated. Row j of `detections` (J, I) counts each image's detections
    that are ranked after true positive j - 1, up to and including true positive j.
    """
    hits = np.flatnonzero(is_hit)
    segments = np.searchsorted(hits, np.arange(len(images)))
    inside = segments < len(hits)
    shape = (len(hits), len(objects))
    detections = sparse.csr_array((np.ones(inside.sum()), (segments[inside], images[inside])), shape)
    return np.concatenate([_area(images[hits], detections, objects, weights) for weights in chunks])


def _area(images: np.ndarray, detections: sparse.csr_array, objects: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the area under the precision curve at 101 recalls, for weights (I, R) as (R,); NaN without objects."""
    total = objects @ weights
    true_positives = np.cumsum(weights[images], axis=0)
    precision = true_positives / (np.cumsum(detections @ weights, axis=0) + np.spacing(1))
    envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    recall = true_positives / np.where(total > 0, total, 1)
    # Recalls of the table that were reached: those below the nearest one, and the nearest one if rounding was downwards.
    nearest = np.rint(recall * 100).astype(np.intp)
    reached = nearest + (RECALLS[nearest] <= recall)
    sums = np.einsum("jr,jr->r", envelope, np.diff(reached, axis=0, prepend=0))
    return np.where(total > 0, sums / len(RECALLS), np.nan)

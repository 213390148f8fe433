"""Measure the same detections again on resamples of their images: how much of a number is owed to which images were annotated.

pycocotools matches detections with objects once; each resample then only weighs its images, which gives the number that it would give
if each image were there as often as its weight says. Legend: R resamples, I images, D detections, J true positives, T IoU thresholds.
"""

from typing import Any

import numpy as np
from scipy import sparse

from yolor_ray.evaluate import coco
from yolor_ray.study.results import METRICS

CHUNK = 256
"""Resamples at a time: bounds the memory, and keeps small data sets in the processor's cache."""
RECALLS = np.linspace(0, 1, 101)
IOUS = 10
"""Thresholds .50, .55 to .95."""
IOU75 = 5
"""Index of .75 among them."""


def draws(images: int, count: int, seed: int) -> np.ndarray:
    """Return how often each image is in each of `count` resamples with replacement, (R, I); every row sums to `images`."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=count)


def resampled(truth: dict[str, Any], rows: list[coco.Row], weights: np.ndarray) -> np.ndarray:
    """Return METRICS of boxes for each row of weights, (R, M); NaN where a resample has no object to measure on.

    Args:
        truth: COCO's annotations, as `coco.score` takes them.
        rows: COCO's results; copies of a detection that an image's weight makes are ranked next to each other.
        weights: (R, I) how often each image counts, in the order of truth["images"].

    Raises:
        DataError: as `coco.measure`.
    """
    scorer = coco.matched(truth, rows)
    columns = {image["id"]: index for index, image in enumerate(truth["images"])}
    chunks = [np.ascontiguousarray(weights[i : i + CHUNK].T, np.float64) for i in range(0, len(weights), CHUNK)]
    images, areas = len(scorer.params.imgIds), len(scorer.params.areaRng)
    classes = []
    for k in range(len(scorer.params.catIds)):
        starts = range(k * areas * images, (k + 1) * areas * images, images)
        of_areas = [_precisions([e for e in scorer.evalImgs[s : s + images] if e], columns, chunks) for s in starts]
        whole = of_areas[0]
        classes.append(np.stack([whole.mean(axis=0), whole[0], whole[IOU75], *(area.mean(axis=0) for area in of_areas[1:])]))
    return _mean_known(np.array(classes).reshape(-1, len(METRICS), len(weights))).T


def _mean_known(values: np.ndarray) -> np.ndarray:
    """Return the mean over the first axis without NaN; NaN where there is nothing else."""
    known = np.isfinite(values)
    count = known.sum(axis=0)
    return np.where(count > 0, np.where(known, values, 0).sum(axis=0) / np.maximum(count, 1), np.nan)


def _precisions(found: list[dict[str, Any]], columns: dict[int, int], chunks: list[np.ndarray]) -> np.ndarray:
    """Return the average precision (T, R) of one class and range of areas from what was matched on its images.

    Args:
        found: `evalImgs` of pycocotools.
        columns: Index of each image by its id.
        chunks: Weights, each (I, some of R).
    """
    if not found:
        return np.full((IOUS, sum(w.shape[1] for w in chunks)), np.nan)
    of_images = np.array([columns[one["image_id"]] for one in found])
    objects = np.zeros(len(columns))
    objects[of_images] = [np.count_nonzero(one["gtIgnore"] == 0) for one in found]
    scores = np.concatenate([one["dtScores"] for one in found])
    order = np.argsort(-scores, kind="mergesort")
    images = np.repeat(of_images, [len(one["dtScores"]) for one in found])[order]
    matched = np.concatenate([one["dtMatches"] for one in found], axis=1)[:, order] > 0
    counted = ~np.concatenate([one["dtIgnore"] for one in found], axis=1)[:, order]
    return np.stack([_precision(images[c], m[c], objects, chunks) for m, c in zip(matched, counted, strict=True)])


def _precision(images: np.ndarray, hit: np.ndarray, objects: np.ndarray, chunks: list[np.ndarray]) -> np.ndarray:
    """Return the average precision (R,) from the images (D,) of the ranked detections and whether each is a true positive.

    Precision peaks at true positives, so only these J ranks are looked at; `ranked` (J, I) counts the detections of each image that are
    ranked from one of them, which it leaves out, to the next.
    """
    hits = np.flatnonzero(hit)
    segments = np.searchsorted(hits, np.arange(len(images)))
    inside = segments < len(hits)
    shape = (len(hits), len(objects))
    ranked = sparse.csr_array((np.ones(inside.sum()), (segments[inside], images[inside])), shape)
    return np.concatenate([_area(images[hits], ranked, objects, weights) for weights in chunks])


def _area(images: np.ndarray, ranked: sparse.csr_array, objects: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the area under the precision curve at 101 recalls, for weights (I, R) as (R,); NaN without objects."""
    total = objects @ weights
    found = np.cumsum(weights[images], axis=0)
    precision = found / (np.cumsum(ranked @ weights, axis=0) + np.spacing(1))
    best_from = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    recall = found / np.where(total > 0, total, 1)
    # Recalls of the table that were reached: those below the nearest one, and it if rounding was downwards.
    nearest = np.rint(recall * 100).astype(np.intp)
    reached = nearest + (RECALLS[nearest] <= recall)
    sums = np.einsum("jr,jr->r", best_from, np.diff(reached, axis=0, prepend=0))
    return np.where(total > 0, sums / len(RECALLS), np.nan)

"""Score embeddings by retrieval of other views of the same individual.

Every annotated object with an identity is a query once, among all others. Legend: N objects, E embedding numbers, D detections.
"""

from dataclasses import dataclass

import numpy as np
import torch

from yolor_ray.boxes import pairwise_iou
from yolor_ray.data.shards.records import Objects
from yolor_ray.evaluate.coco import NO_VALUE
from yolor_ray.inference.postprocess import ImageDetections

MIN_IOU = 0.5
"""Least overlap of a detection with the object that it represents."""
MISSED_SIMILARITY = -2.0
"""Similarity to an object without a detection: below every cosine."""
DECIMALS = 6
"""Decimals of compared cosines, so that equal embeddings stay equal under the rounding of matrix products."""
QUERIES_AT_ONCE = 512
"""Queries per matrix product; bounds the memory."""


@dataclass(frozen=True)
class IdentifiedObjects:
    """Objects of a dataset that have an identity."""

    identities: np.ndarray
    """(N,) int64, 0 or more."""
    cameras: np.ndarray
    """(N,) int64; -1 unknown."""
    embeddings: np.ndarray
    """(N, E) of length 1; zeros for an object without a detection."""


@dataclass(frozen=True)
class LocatedObjects:
    """Objects with an identity, and where in the dataset they are."""

    objects: IdentifiedObjects
    image_ids: np.ndarray
    """(N,) int64."""
    labels: np.ndarray
    """(N,) int64 class."""


def is_identified(objects: Objects) -> np.ndarray:
    """Return (O,) bool: the objects of an image that are a known individual, without crowd regions."""
    identities = np.full(len(objects.labels), -1) if objects.identities is None else objects.identities
    identified: np.ndarray = (identities >= 0) & ~objects.crowd
    return identified


def match_embeddings(objects: Objects, detections: ImageDetections) -> tuple[np.ndarray, np.ndarray]:
    """Return identities (N,) and embeddings (N, E) of the objects of an image that `is_identified` selects.

    Detections choose in descending order of confidence. Each takes at most one object: the free object with the largest overlap.
    """
    assert detections.embeddings is not None
    identities = np.full(len(objects.labels), -1) if objects.identities is None else objects.identities
    identified = is_identified(objects)
    embeddings = np.zeros((int(identified.sum()), detections.embeddings.shape[1]), detections.embeddings.dtype)
    boxes_xyxy = torch.tensor(objects.boxes_xyxy[identified], dtype=torch.float64)
    overlaps = pairwise_iou(torch.from_numpy(detections.boxes_xyxy), boxes_xyxy).numpy()
    for detection in np.flatnonzero((overlaps >= MIN_IOU).any(axis=1)):
        best = int(overlaps[detection].argmax())
        if overlaps[detection, best] >= MIN_IOU:
            embeddings[best] = detections.embeddings[detection]
            overlaps[:, best] = -1
    return identities[identified], embeddings


def retrieval_metrics(objects: IdentifiedObjects) -> dict[str, float]:
    """Return rank1, the share of queries whose first answer is right, and mAP; -1 if no query has a right answer.

    The gallery of a query is all other objects, without those of the query's camera if that camera is known. Objects are ranked by
    cosine; among equal cosines the right answers come last. An object without a detection scores 0 as a query and ranks last in
    every gallery.
    """
    scores = [_score_queries(objects, start) for start in range(0, len(objects.identities), QUERIES_AT_ONCE)]
    all_scores = np.concatenate([np.zeros((0, 2)), *scores])
    rank1, average_precision = all_scores.mean(axis=0).tolist() if len(all_scores) else (NO_VALUE, NO_VALUE)
    return {"rank1": rank1, "mAP": average_precision}


def _score_queries(objects: IdentifiedObjects, start: int) -> np.ndarray:
    """Return rank1 and average precision, (Q, 2), of the queries from `start` on that have a right answer."""
    indices = np.arange(len(objects.identities))
    queries = indices[start : start + QUERIES_AT_ONCE]
    missed = np.asarray(~objects.embeddings.any(axis=1))
    similarities = np.round(objects.embeddings[queries].astype(np.float64) @ objects.embeddings.T.astype(np.float64), DECIMALS)
    similarities[:, missed] = MISSED_SIMILARITY
    cameras = objects.cameras[queries, None]
    gallery = (queries[:, None] != indices) & ((cameras != objects.cameras) | (cameras < 0))
    relevant = gallery & (objects.identities[queries, None] == objects.identities)
    answerable = relevant.any(axis=1)
    rows = [_score_query(*row) for row in zip(similarities[answerable], gallery[answerable], relevant[answerable], strict=True)]
    return np.array(rows).reshape(-1, 2) * ~missed[queries[answerable], None]


def _score_query(similarities: np.ndarray, gallery: np.ndarray, relevant: np.ndarray) -> tuple[float, float]:
    """Return rank1, 1 if the first answer is right, and average precision of one query: (N,) each."""
    right = np.sort(similarities[relevant])[::-1]
    wrong = np.sort(similarities[gallery & ~relevant])
    wrong_before = len(wrong) - np.searchsorted(wrong, right, side="left")
    hits = np.arange(1, len(right) + 1)
    return float(wrong_before[0] == 0), float((hits / (hits + wrong_before)).mean())

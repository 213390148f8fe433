"""Score identities: tell whether the embedding of an object leads to other views of the same individual.

Every annotated object with an identity is a query once, among all others. Legend: N objects, E embedding numbers, D detections.
"""

from dataclasses import dataclass

import numpy as np
import torch

from yolor_ray.boxes import pairwise_iou
from yolor_ray.data.shards.records import Objects
from yolor_ray.inference.postprocess import ImageDetections

LEAST_IOU = 0.5
"""A detection speaks for an object that it overlaps at least so much."""
MISSED = -2.0
"""Similarity to an object that no detection overlaps: below every cosine."""
DECIMALS = 6
"""Cosines are compared to so many decimals, so that equal embeddings are equal whatever a matrix product rounds."""
QUERIES_AT_ONCE = 512


@dataclass(frozen=True)
class Views:
    """Hold the objects of a data set that have an identity."""

    identities: np.ndarray
    """(N,) int64, 0 or more."""
    cameras: np.ndarray
    """(N,) int64; -1 unknown."""
    embeddings: np.ndarray
    """(N, E) of length 1; zeros for an object that no detection overlaps."""


def represent(objects: Objects, located: ImageDetections) -> tuple[np.ndarray, np.ndarray]:
    """Return identities (N,) and embeddings (N, E) of an image's known individuals, crowd regions apart.

    Detections choose from the most confident down, each at most one object: the free one that it overlaps most.
    """
    assert located.embeddings is not None
    identities = np.full(len(objects.labels), -1) if objects.identities is None else objects.identities
    known = (identities >= 0) & ~objects.crowd
    embeddings = np.zeros((int(known.sum()), located.embeddings.shape[1]), located.embeddings.dtype)
    boxes_xyxy = torch.tensor(objects.boxes_xyxy[known], dtype=torch.float64)
    overlaps = pairwise_iou(torch.from_numpy(located.boxes_xyxy), boxes_xyxy).numpy()
    for detection in np.flatnonzero((overlaps >= LEAST_IOU).any(axis=1)):
        best = int(overlaps[detection].argmax())
        if overlaps[detection, best] >= LEAST_IOU:
            embeddings[best] = located.embeddings[detection]
            overlaps[:, best] = -1
    return identities[known], embeddings


def retrieval_metrics(views: Views) -> dict[str, float]:
    """Return rank1, the share of queries whose first answer is right, and mAP; -1 where no query has a right answer.

    The gallery of a query is all other objects but those of its own camera, where that is known; objects are ranked by cosine, equal
    ones with the right answers last. A missed object scores 0 as a query and ranks behind everything in a gallery.
    """
    scores = [_scores(views, start) for start in range(0, len(views.identities), QUERIES_AT_ONCE)]
    every = np.concatenate([np.zeros((0, 2)), *scores])
    rank1, average_precision = every.mean(axis=0).tolist() if len(every) else (-1.0, -1.0)
    return {"rank1": rank1, "mAP": average_precision}


def _scores(views: Views, start: int) -> np.ndarray:
    """Return rank1 and average precision, (Q, 2), of those of the queries from `start` on that have a right answer."""
    every = np.arange(len(views.identities))
    queries = every[start : start + QUERIES_AT_ONCE]
    missed = np.asarray(~views.embeddings.any(axis=1))
    similarities = np.round(views.embeddings[queries].astype(np.float64) @ views.embeddings.T.astype(np.float64), DECIMALS)
    similarities[:, missed] = MISSED
    cameras = views.cameras[queries, None]
    gallery = (queries[:, None] != every) & ((cameras != views.cameras) | (cameras < 0))
    relevant = gallery & (views.identities[queries, None] == views.identities)
    answered = relevant.any(axis=1)
    rows = [_query(*row) for row in zip(similarities[answered], gallery[answered], relevant[answered], strict=True)]
    return np.array(rows).reshape(-1, 2) * ~missed[queries[answered], None]


def _query(similarities: np.ndarray, gallery: np.ndarray, relevant: np.ndarray) -> tuple[float, float]:
    """Return whether the first answer is right, and average precision, of one query: (N,) each."""
    right = np.sort(similarities[relevant])[::-1]
    wrong = np.sort(similarities[gallery & ~relevant])
    wrong_before = len(wrong) - np.searchsorted(wrong, right, side="left")
    hits = np.arange(1, len(right) + 1)
    return float(wrong_before[0] == 0), float((hits / (hits + wrong_before)).mean())

"""Annotations of one training image: arrays over its objects, and labels of the image as a whole.

Legend: N objects, K object classes, J keypoints per object, M labels of the whole image, S side of the square network input in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SampleLabels:
    """Annotations of one tile or sample, in its pixels; None for annotations outside the label spec."""

    boxes_xyxy: np.ndarray
    """(N, 4) float32."""
    labels: np.ndarray
    """(N,) int64: classes of the objects."""
    boxes_known: bool = True
    """True if every object of the image has a box here; False if there may be other objects."""
    classes_known: np.ndarray | None = None
    """(K,) bool: classes whose objects are annotated in the image; None for all classes."""
    member: int = 0
    """Index of the image's dataset in a union."""
    keypoints: np.ndarray | None = None
    """(N, J, 3) float32: x, y and visibility: -1 not annotated, 0 unlabelled, 1 hidden, 2 visible; x, y mean nothing below 1."""
    identities: np.ndarray | None = None
    """(N,) int64: index of the individual in `LabelSpec.identities`, -1 unknown."""
    has_mask: np.ndarray | None = None
    """(N,) bool: the object's pixels are known; in a sample, also that `instances` shows at least one of them."""
    instances: np.ndarray | None = None
    """Instance map, 1 + index of the object that each pixel shows, 0 none: (h, w) uint16 in a tile, (S, S) int32 in a sample."""
    image_labels: np.ndarray | None = None
    """(M,) float32: 1 yes, 0 no, NaN unknown."""


def concatenate_labels(arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Concatenate arrays of several images; return None if any of them is None."""
    present = [array for array in arrays if array is not None]
    return np.concatenate(present) if len(present) == len(arrays) else None


def known_in_all(arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Return (K,) bool: the classes that are known in each of several images; None if any of them is None."""
    present = [array for array in arrays if array is not None]
    return np.logical_and.reduce(present) if len(present) == len(arrays) else None


def mixup_labels(first: SampleLabels, second: SampleLabels) -> SampleLabels:
    """Combine the annotations of two images blended by mixup.

    An instance map stores one object per pixel: the first image's map is kept, and the second image's masks become unknown.
    """
    both = first, second
    no_mask = None if second.has_mask is None else np.zeros_like(second.has_mask)
    return SampleLabels(
        boxes_xyxy=np.concatenate([annotations.boxes_xyxy for annotations in both]),
        labels=np.concatenate([annotations.labels for annotations in both]),
        boxes_known=first.boxes_known and second.boxes_known,
        classes_known=known_in_all([annotations.classes_known for annotations in both]),
        member=first.member,
        keypoints=concatenate_labels([annotations.keypoints for annotations in both]),
        identities=concatenate_labels([annotations.identities for annotations in both]),
        has_mask=concatenate_labels([first.has_mask, no_mask]),
        instances=first.instances,
        image_labels=_union_of_image_labels(first.image_labels, second.image_labels),
    )


def _union_of_image_labels(first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray | None:
    """Return 1 where either image has 1, else NaN where either is unknown, else 0."""
    if first is None or second is None:
        return None
    return np.where((first == 1) | (second == 1), np.float32(1), first + second)

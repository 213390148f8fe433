"""Hold what is known of one picture: arrays over its objects that change together, and what is said of the image as a whole.

Legend: N objects, J keypoints per object, M labels of the whole image, S side of the square network input in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SampleLabels:
    """Hold what is known of one picture, in its pixels; what is not wanted is None."""

    boxes_xyxy: np.ndarray
    """(N, 4) float32."""
    labels: np.ndarray
    """(N,) int64."""
    boxes_known: bool = True
    """All objects of the picture have a box here; otherwise there may be others."""
    keypoints: np.ndarray | None = None
    """(N, J, 3) float32: x, y and visibility: -1 joint unknown, 0 unlabelled, 1 hidden, 2 visible; x, y mean nothing below 1."""
    identities: np.ndarray | None = None
    """(N,) int64: place of the individual in `Wanted.identities`, -1 unknown."""
    has_mask: np.ndarray | None = None
    """(N,) bool: the object's pixels are known; in a sample also that `instances` shows at least one of them."""
    instances: np.ndarray | None = None
    """1 + number of the object that each pixel shows, 0 nothing: (h, w) uint16 in a tile, (S, S) int32 in a sample."""
    image_labels: np.ndarray | None = None
    """(M,) float32: 1 yes, 0 no, NaN unknown."""


def concatenate_labels(arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Return arrays one after another; None where they are not wanted."""
    known = [array for array in arrays if array is not None]
    return np.concatenate(known) if len(known) == len(arrays) else None


def mixup_labels(first: SampleLabels, second: SampleLabels) -> SampleLabels:
    """Return what is known of a picture that shows two through each other.

    A pixel then shows two objects, and the map has room for one: it stays the first's, and the second's masks become unknown.
    """
    both = first, second
    no_mask = None if second.has_mask is None else np.zeros_like(second.has_mask)
    return SampleLabels(
        boxes_xyxy=np.concatenate([known.boxes_xyxy for known in both]),
        labels=np.concatenate([known.labels for known in both]),
        boxes_known=first.boxes_known and second.boxes_known,
        keypoints=concatenate_labels([known.keypoints for known in both]),
        identities=concatenate_labels([known.identities for known in both]),
        has_mask=concatenate_labels([first.has_mask, no_mask]),
        instances=first.instances,
        image_labels=_either(first.image_labels, second.image_labels),
    )


def _either(first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray | None:
    """Return 1 where one of two has 1, else NaN where one is unknown, else 0."""
    if first is None or second is None:
        return None
    return np.where((first == 1) | (second == 1), np.float32(1), first + second)

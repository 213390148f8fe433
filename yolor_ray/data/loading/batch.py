"""A batch of training images with their annotations.

Legend: B images, S side of the square network input in pixels, N boxes, K classes, J keypoints per object, M labels of the whole image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from yolor_ray.data.augment.labels import SampleLabels, concatenate_labels


@dataclass(frozen=True)
class Batch:
    """One batch of training images with their annotations; None for annotations outside the label spec.

    `images` is overwritten when the consumer takes the second batch after this one.
    """

    images: np.ndarray
    """(B, S, S, 3) uint8 RGB."""
    positions: np.ndarray
    """(N,) int64: index in the batch of each box's image."""
    labels: np.ndarray
    """(N,) int64: classes of the objects."""
    boxes_xyxy: np.ndarray
    """(N, 4) float32, pixels of the network input."""
    boxes_known: np.ndarray
    """(B,) bool: True if every object of the image has a box here; False if there may be other objects."""
    classes_known: np.ndarray | None = None
    """(B, K) bool: classes whose objects are annotated in the image; None for all classes."""
    members: np.ndarray | None = None
    """(B,) int64: index of each image's dataset in a union; None if all images are of one dataset."""
    keypoints: np.ndarray | None = None
    """(N, J, 3) float32: x, y in pixels of the network input; visibility -1 not annotated, 0 unlabelled, 1 hidden, 2 visible."""
    identities: np.ndarray | None = None
    """(N,) int64: index of the individual in `LabelSpec.identities`, -1 unknown."""
    has_mask: np.ndarray | None = None
    """(N,) bool: True if `instances` shows the object; False if the object's pixels are unknown."""
    instances: np.ndarray | None = None
    """(B, S, S) int32 instance maps: 1 + index of the object in `boxes_xyxy`, 0 none."""
    image_labels: np.ndarray | None = None
    """(B, M) float32: 1 yes, 0 no, NaN unknown."""


def make_batch(images: np.ndarray, annotations: Sequence[SampleLabels]) -> Batch:
    """Return the batch of images (B, S, S, 3) and the annotations of each."""
    counts = [len(sample.labels) for sample in annotations]
    members = np.array([sample.member for sample in annotations], np.int64)
    return Batch(
        images,
        positions=np.repeat(np.arange(len(counts)), counts),
        labels=np.concatenate([sample.labels for sample in annotations]),
        boxes_xyxy=np.concatenate([sample.boxes_xyxy for sample in annotations]).astype(np.float32),
        boxes_known=np.array([sample.boxes_known for sample in annotations], np.bool_),
        classes_known=_stack([sample.classes_known for sample in annotations]),
        members=members if len(np.unique(members)) > 1 else None,
        keypoints=concatenate_labels([sample.keypoints for sample in annotations]),
        identities=concatenate_labels([sample.identities for sample in annotations]),
        has_mask=concatenate_labels([sample.has_mask for sample in annotations]),
        instances=_batch_instances([sample.instances for sample in annotations], counts),
        image_labels=_stack([sample.image_labels for sample in annotations]),
    )


def _stack(arrays: list[np.ndarray | None]) -> np.ndarray | None:
    return concatenate_labels([None if array is None else array[None] for array in arrays])


def _batch_instances(maps: list[np.ndarray | None], counts: list[int]) -> np.ndarray | None:
    """Renumber the samples' instance maps by the objects' indices in the batch."""
    stacked = _stack(maps)
    if stacked is None:
        return None
    earlier = np.cumsum([0, *counts[:-1]], dtype=np.int32)
    return np.where(stacked > 0, stacked + earlier[:, None, None], np.int32(0))

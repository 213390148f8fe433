"""One image with its annotations in memory: packing makes records, shards store them, and training reads them.

Legend: N objects, J keypoints per object, M labels of the whole image.
"""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Objects:
    """The annotated objects of one image, in pixels of the displayed image (EXIF orientation applied)."""

    boxes_xyxy: np.ndarray
    """(N, 4) float32: x1, y1, x2, y2 as continuous edges; 0 <= x1 < x2 <= width."""
    labels: np.ndarray
    """(N,) int64: index into the dataset's classes."""
    crowd: np.ndarray
    """(N,) bool: a region of many objects; ignored in training and by COCO scoring."""
    areas: np.ndarray
    """(N,) float32: px²; area of the mask, or of the box where the object has no mask."""
    masks: tuple[bytes | None, ...] | None = None
    """N compressed COCO run-length strings (`counts`; size = height, width of the image); None for an object whose mask is unknown."""
    keypoints: np.ndarray | None = None
    """(N, J, 3) float32: x, y in pixels and visibility 0 unlabelled, 1 hidden, 2 visible, -1 none of the class's keypoints."""
    identities: np.ndarray | None = None
    """(N,) int64: equal numbers are the same individual; -1 unknown."""


@dataclass(frozen=True)
class Record:
    """One image with its annotations."""

    name: str
    """File name relative to the images folder; unique in a dataset."""
    image: bytes
    """Bytes of the source file; never re-encoded."""
    width: int
    """Pixels of the displayed image."""
    height: int
    """Pixels of the displayed image."""
    objects: Objects
    image_labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """(M,) int64: index into the dataset's image classes."""
    tasks: tuple[str, ...] = ("detect",)
    """Sorted names of the tasks that this image is annotated for; labels of every other task are unknown."""
    camera: int = -1
    """Number of the camera that took the image; -1 unknown."""


def objects_from_boxes(boxes_xyxy: np.ndarray, labels: np.ndarray) -> Objects:
    """Make detection objects without crowd regions; areas are those of the boxes."""
    boxes_xyxy = np.asarray(boxes_xyxy, np.float32).reshape(-1, 4)
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    return Objects(boxes_xyxy, np.asarray(labels, np.int64).reshape(-1), np.zeros(len(boxes_xyxy), bool), sides.prod(axis=1))

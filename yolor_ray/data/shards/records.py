"""Hold one annotated image in memory: the record that annotations become, shards store and training reads.

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
    """(N,) int64: index into the data set's classes."""
    crowd: np.ndarray
    """(N,) bool: a region of many objects; ignored in training and by COCO scoring."""
    areas: np.ndarray
    """(N,) float32: px²; the mask's area where there is a mask, else that of the box."""
    masks: tuple[bytes, ...] | None = None
    """N compressed COCO run-length strings (`counts`; size = height, width of the image)."""
    keypoints: np.ndarray | None = None
    """(N, J, 3) float32: x, y in pixels and visibility 0 unlabelled, 1 hidden, 2 visible."""
    identities: np.ndarray | None = None
    """(N,) int64: the same number is the same individual; -1 unknown."""


@dataclass(frozen=True)
class Record:
    """One image with its annotations."""

    name: str
    """File name relative to the images folder; unique in a data set."""
    image: bytes
    """The encoded file as it was found; never re-encoded."""
    width: int
    """Pixels of the displayed image."""
    height: int
    """Pixels of the displayed image."""
    objects: Objects
    image_labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """(M,) int64: index into the data set's image classes."""
    tasks: tuple[str, ...] = ("detect",)
    """What was annotated on this image, sorted names; of any other task nothing is known."""
    camera: int = -1
    """Which camera took it; -1 unknown."""


def objects_from_boxes(boxes_xyxy: np.ndarray, labels: np.ndarray) -> Objects:
    """Make plain detection objects: no crowd regions, area = box area."""
    boxes_xyxy = np.asarray(boxes_xyxy, np.float32).reshape(-1, 4)
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    return Objects(boxes_xyxy, np.asarray(labels, np.int64).reshape(-1), np.zeros(len(boxes_xyxy), bool), sides.prod(axis=1))

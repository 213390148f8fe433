"""Compare the boxes of an image with its annotations: detections that are right, and the kinds of errors of the others.

The kinds are those of TIDE (arXiv 2008.08115, section 2.2): a detection is right if it is the most confident one that overlaps an object
of its class by an IoU of .50 or more. Detections on crowd regions are ignored, as COCO ignores them.
Legend: D detections, G annotated objects.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from yolor_ray.data.shards.dataset import Dataset
from yolor_ray.evaluate.detections import read_boxes
from yolor_ray.evaluate.predict import read_annotations

FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1
"""IoU from which a detection is on an object, and up to which it is on the background."""


class Kind(enum.IntEnum):
    """Kind of a detection."""

    IGNORED = -1
    """On a crowd region."""
    RIGHT = 0
    CLASS = 1
    """On an object, with the name of another class."""
    PLACE = 2
    """Of the right class, with an IoU under .50."""
    BOTH = 3
    """Near an object of another class, with an IoU under .50."""
    DUPLICATE = 4
    """On an object that a more confident detection has found."""
    BACKGROUND = 5
    """On no object."""


@dataclass(frozen=True)
class ImageBoxes:
    """Annotations and detections of one image, in pixels of the displayed image."""

    image_id: int
    """Number of the record in the dataset."""
    name: str
    size: tuple[int, int]
    """Width and height of the image."""
    truth_xyxy: np.ndarray
    """(G, 4) float32."""
    truth_labels: np.ndarray
    """(G,) int64."""
    crowd: np.ndarray
    """(G,) bool."""
    boxes_xyxy: np.ndarray
    """(D, 4) float64, the most confident first."""
    labels: np.ndarray
    """(D,) int64."""
    confidences: np.ndarray
    """(D,) float64."""

    def over(self, thresholds: np.ndarray) -> "ImageBoxes":
        """Return the image with the detections whose confidence reaches the threshold, (K,), of their class."""
        kept = self.confidences >= thresholds[self.labels]
        detections = self.boxes_xyxy[kept], self.labels[kept], self.confidences[kept]
        return ImageBoxes(self.image_id, self.name, self.size, self.truth_xyxy, self.truth_labels, self.crowd, *detections)


@dataclass(frozen=True)
class Comparison:
    """Detections of an image, each with its kind and the object that it belongs to."""

    kinds: np.ndarray
    """(D,) int64: a `Kind` of each detection."""
    objects: np.ndarray
    """(D,) int64: index of the object that the detection finds, takes for another class, misplaces or repeats; else -1."""
    found: np.ndarray
    """(G,) bool: a right detection found the object."""
    missed: np.ndarray
    """(G,) bool: no detection found, misnamed or misplaced the object; crowd regions are never missed."""


def read_images(dataset: Dataset, detections: bytes) -> list[ImageBoxes]:
    """Return the images of a dataset that are annotated for `detect`, with the detections of a Parquet file of `evaluate.detections`.

    Raises:
        DataError: the Parquet file is damaged.
    """
    image_ids, labels, confidences, boxes_xyxy = read_boxes(detections)
    order = np.lexsort((-confidences, image_ids))
    image_ids, labels, confidences, boxes_xyxy = image_ids[order], labels[order], confidences[order], boxes_xyxy[order]
    bounds = np.searchsorted(image_ids, np.arange(dataset.images + 1))
    images = []
    for image_id, record in enumerate(read_annotations(dataset)):
        if "detect" not in record.tasks:
            continue
        own, objects = slice(bounds[image_id], bounds[image_id + 1]), record.objects
        truth = objects.boxes_xyxy, objects.labels, objects.crowd
        size = record.width, record.height
        images.append(ImageBoxes(image_id, record.name, size, *truth, boxes_xyxy[own], labels[own], confidences[own]))
    return images


def compare(image: ImageBoxes) -> Comparison:
    """Compare the detections of an image with its annotations."""
    single, crowd = np.flatnonzero(~image.crowd), np.flatnonzero(image.crowd)
    iou = intersection_over_union(image.boxes_xyxy, image.truth_xyxy[single])
    same_class = image.labels[:, None] == image.truth_labels[single]
    kinds = np.full(len(image.labels), Kind.BACKGROUND, np.int64)
    objects = np.full(len(image.labels), -1, np.int64)
    found = np.zeros(len(single), bool)
    on_crowd = _share_inside(image.boxes_xyxy, image.truth_xyxy[crowd]) * (image.labels[:, None] == image.truth_labels[crowd])
    for d in range(len(image.labels)):
        free = np.where(same_class[d] & ~found, iou[d], 0)
        if free.max(initial=0) >= FOREGROUND_IOU:
            kinds[d], objects[d] = Kind.RIGHT, free.argmax()
            found[objects[d]] = True
        elif on_crowd[d].max(initial=0) >= FOREGROUND_IOU:
            kinds[d] = Kind.IGNORED
        else:
            kinds[d], objects[d] = _error_kind(np.where(same_class[d], iou[d], 0), np.where(same_class[d], 0, iou[d]))
    repaired = objects[(kinds == Kind.CLASS) | (kinds == Kind.PLACE)]
    missed = ~found
    missed[repaired] = False
    all_found, all_missed = np.zeros((2, len(image.crowd)), bool)
    all_found[single], all_missed[single] = found, missed
    objects[objects >= 0] = single[objects[objects >= 0]]
    return Comparison(kinds, objects, all_found, all_missed)


def _error_kind(iou_same: np.ndarray, iou_other: np.ndarray) -> tuple[Kind, int]:
    """Return the kind of a wrong detection and its object, from its IoU with the objects of its class and of other classes, (G,) each."""
    same, other = iou_same.max(initial=0), iou_other.max(initial=0)
    if BACKGROUND_IOU < same < FOREGROUND_IOU:
        return Kind.PLACE, int(iou_same.argmax())
    if other >= FOREGROUND_IOU:
        return Kind.CLASS, int(iou_other.argmax())
    if same >= FOREGROUND_IOU:
        return Kind.DUPLICATE, int(iou_same.argmax())
    if max(same, other) <= BACKGROUND_IOU:
        return Kind.BACKGROUND, -1
    return Kind.BOTH, -1


def intersection_over_union(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the IoU of each pair of boxes, (N, M), from boxes_xyxy (N, 4) and (M, 4)."""
    shared, areas = _intersections(first, second), [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    return shared / np.maximum(areas[0][:, None] + areas[1] - shared, 1e-9)


def _share_inside(boxes: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Return the share of each box's area that lies inside each region, (N, M)."""
    return _intersections(boxes, regions) / np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(axis=1), 1e-9)[:, None]


def _intersections(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    corners = np.minimum(first[:, None, 2:], second[None, :, 2:]) - np.maximum(first[:, None, :2], second[None, :, :2])
    return corners.clip(min=0).prod(axis=2)


def compare_all(images: Sequence[ImageBoxes], thresholds: np.ndarray | None = None) -> list[tuple[ImageBoxes, Comparison]]:
    """Compare images, with all detections or with those whose confidence reaches the threshold, (K,), of their class."""
    chosen = images if thresholds is None else [image.over(thresholds) for image in images]
    return [(image, compare(image)) for image in chosen]

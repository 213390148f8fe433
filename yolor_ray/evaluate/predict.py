"""Run a network over row groups of a packed data set and return what it finds, image by image.

Needs no Ray: the evaluate job and the validation of the training loop spread row groups over workers, and both run this.
Legend: B images, S side of the square network input in pixels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import torch

from yolor_ray.data.shards.dataset import SCHEMA, Dataset, RowGroup, read_row_group, records
from yolor_ray.data.shards.records import Record
from yolor_ray.evaluate import coco
from yolor_ray.inference.dataset_images import images_of
from yolor_ray.inference.detect import Detections
from yolor_ray.inference.postprocess import ImageDetections, to_image_detections

CONFIDENCE = 0.001
"""Precision is measured down to nearly every prediction."""
IOU = 0.65
MAX_DETECTIONS = 300
"""Per image; COCO's table counts the best 100 of each class."""

Detect = Callable[..., list[Detections]]
"""Takes images (B, S, S, 3) uint8 and, by name, confidence, iou and max_detections; see `model.predict`."""


def shares(groups: Sequence[RowGroup], workers: int) -> list[list[RowGroup]]:
    """Deal row groups out so that workers get about as many rows each; a worker gets none when there are too few."""
    dealt: list[list[RowGroup]] = [[] for _ in range(workers)]
    rows = [0] * workers
    for group in sorted(groups, key=lambda g: (-g.rows, g.first_record)):
        least = rows.index(min(rows))
        dealt[least].append(group)
        rows[least] += group.rows
    return [sorted(share, key=lambda g: g.first_record) for share in dealt]


def predict_groups(
    detect: Detect, dataset: Dataset, groups: Sequence[RowGroup], image_px: int, batch: int, threads: int = 1
) -> Iterator[tuple[int, ImageDetections]]:
    """Yield (image id, what was found) for every image of the row groups."""
    for found in images_of(dataset, groups, image_px, batch, threads):
        detections = detect(torch.from_numpy(found.images), confidence=CONFIDENCE, iou=IOU, max_detections=MAX_DETECTIONS)
        for index, (one, place, record) in enumerate(zip(detections, found.letterboxes, found.records, strict=True)):
            # Masks take time and embeddings memory; nobody can say whether they are right where they are not annotated.
            known = one if "embed" in record.tasks else replace(one, embeddings=None)
            yield found.first_id + index, to_image_detections(known, place, masks="segment" in record.tasks)


def merge(parts: Sequence[Mapping[int, ImageDetections]], images: int) -> list[ImageDetections]:
    """Return what was found, in the order of the image ids; every image must have been predicted exactly once."""
    found = {image_id: one for part in parts for image_id, one in part.items()}
    predicted = sum(len(part) for part in parts)
    assert predicted == images and found.keys() == set(range(images)), f"{predicted} predictions of {len(found)} images, {images} expected"
    return [found[image_id] for image_id in range(images)]


def annotations_of(dataset: Dataset) -> list[Record]:
    """Return the records of a packed data set by image id, without reading any image."""
    return [record for group in dataset.row_groups for record in _annotations(dataset, group)]


def _annotations(dataset: Dataset, group: RowGroup) -> list[Record]:
    table = read_row_group(dataset, group, [name for name in SCHEMA.names if name != "image"])
    return records(table.append_column(SCHEMA.field("image"), pa.array([b""] * len(table), pa.binary())))


def truth_of(dataset: Dataset) -> dict[str, Any]:
    """Return the boxes of a packed data set as COCO JSON; images that are not annotated for detection are left out."""
    return truth_among(annotations_of(dataset), dataset.classes, "detect")


def truth_among(annotated: Sequence[Record], classes: Sequence[str], task: str) -> dict[str, Any]:
    """Return what was annotated for a task as COCO JSON; images that were not are left out."""
    known = ((image_id, one.width, one.height, one.objects) for image_id, one in enumerate(annotated) if task in one.tasks)
    return coco.truth(known, classes)

"""Run a network over row groups of a packed dataset and return the detections of each image.

Nothing here needs Ray. The evaluate job and the validation of the training loop spread row groups over workers, and both use this module.
Legend: B images, S side of the square network input in pixels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from yolor_ray.class_names import keypoint_flags
from yolor_ray.data.shards.dataset import SCHEMA, Dataset, RowGroup, read_row_group, to_records
from yolor_ray.data.shards.records import Objects, Record
from yolor_ray.evaluate import coco
from yolor_ray.inference.dataset_images import ImageBatch, image_batches
from yolor_ray.inference.detect import Detections
from yolor_ray.inference.postprocess import ImageDetections, to_image_detections
from yolor_ray.pack.annotations.masks import box_mask

CONFIDENCE = 0.001
"""Confidence threshold of evaluation: low, because average precision counts nearly every prediction."""
IOU = 0.65
MAX_DETECTIONS = 300
"""Most detections per image; COCO's table counts the best 100 of each class."""

Detect = Callable[..., list[Detections]]
"""Function of images (B, S, S, 3) uint8 with the keyword parameters confidence, iou and max_detections; see `inference.detect.predict`."""


def split_row_groups(groups: Sequence[RowGroup], workers: int) -> list[list[RowGroup]]:
    """Distribute row groups over workers with about equal numbers of rows; a worker gets none if there are too few."""
    shares: list[list[RowGroup]] = [[] for _ in range(workers)]
    rows = [0] * workers
    for group in sorted(groups, key=lambda group: (-group.rows, group.first_record)):
        smallest = rows.index(min(rows))
        shares[smallest].append(group)
        rows[smallest] += group.rows
    return [sorted(share, key=lambda group: group.first_record) for share in shares]


def predict_row_groups(
    detect: Detect, dataset: Dataset, groups: Sequence[RowGroup], image_px: int, batch: int, decode_threads: int = 1
) -> Iterator[tuple[int, ImageDetections]]:
    """Yield (image id, detections) for every image of the row groups."""
    for images in image_batches(dataset, groups, image_px, batch, decode_threads):
        batch_detections = detect(torch.from_numpy(images.images), confidence=CONFIDENCE, iou=IOU, max_detections=MAX_DETECTIONS)
        yield from locate_detections(images, batch_detections, keypoint_flags(dataset))


def locate_detections(
    images: ImageBatch, batch_detections: Sequence[Detections], flags: np.ndarray
) -> Iterator[tuple[int, ImageDetections]]:
    """Yield (image id, detections) for every image of a batch, in pixels of the displayed image.

    Args:
        images: the batch.
        batch_detections: detections of each image, in pixels of the network's input.
        flags: (K, J) bool: the keypoints that each class has.
    """
    image_ids = range(images.first_id, images.first_id + len(images.records))
    for image_id, detections, letterbox, record in zip(image_ids, batch_detections, images.letterboxes, images.records, strict=True):
        # Masks take time and embeddings take memory; neither can be scored on an image that is not annotated for its task.
        scored = detections if "embed" in record.tasks else replace(detections, embeddings=None)
        yield image_id, to_image_detections(scored, letterbox, flags, masks="segment" in record.tasks)


def merge_detections(shares: Sequence[Mapping[int, ImageDetections]], images: int) -> list[ImageDetections]:
    """Merge the detections of all workers in the order of image ids; every image must have been predicted exactly once."""
    merged = {image_id: detections for share in shares for image_id, detections in share.items()}
    predicted = sum(len(share) for share in shares)
    complete = predicted == images and merged.keys() == set(range(images))
    assert complete, f"found {predicted} predictions of {len(merged)} images, expected one for each of {images} images"
    return [merged[image_id] for image_id in range(images)]


def read_annotations(dataset: Dataset) -> list[Record]:
    """Read the records of a packed dataset by image id, with empty images."""
    records: list[Record] = []
    for group in dataset.row_groups:
        table = read_row_group(dataset, group, [name for name in SCHEMA.names if name != "image"])
        records += to_records(table.append_column(SCHEMA.field("image"), pa.array([b""] * len(table), pa.binary())))
    return records


def read_truth(dataset: Dataset) -> dict[str, Any]:
    """Read the boxes of a packed dataset as COCO JSON, without images that are not annotated for detection."""
    return make_task_truth(read_annotations(dataset), dataset.classes, "detect")


def make_task_truth(records: Sequence[Record], classes: Sequence[str], task: str) -> dict[str, Any]:
    """Make COCO JSON of the annotations for a task, without images that are not annotated for the task."""
    annotated = [(image_id, record) for image_id, record in enumerate(records) if task in record.tasks]
    objects_of = _ignore_unknown_masks if task == "segment" else attrgetter("objects")
    return coco.make_truth(((image_id, record.width, record.height, objects_of(record)) for image_id, record in annotated), classes)


def _ignore_unknown_masks(record: Record) -> Objects:
    """Return the objects, those of unknown mask as crowd regions, in which COCO's rules count a detection neither right nor wrong.

    A region reaches the box's size beyond the box on each side, so that it holds every box that has an IoU of .5 or more with the box.
    COCO treats objects without keypoints in the same way.
    """
    objects = record.objects
    if objects.masks is None or all(objects.masks):
        return objects
    sides = objects.boxes_xyxy[:, 2:] - objects.boxes_xyxy[:, :2]
    regions = np.concatenate((objects.boxes_xyxy[:, :2] - sides, objects.boxes_xyxy[:, 2:] + sides), axis=1)
    regions = regions.clip(0, (record.width, record.height) * 2).tolist()
    masks = tuple(mask or box_mask(region, record.width, record.height) for mask, region in zip(objects.masks, regions, strict=True))
    return replace(objects, masks=masks, crowd=objects.crowd | [mask is None for mask in objects.masks])

"""Select example images of a dataset, with their detections and annotations."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from yolor_ray.data.shards.dataset import Dataset, read_row_group, to_records
from yolor_ray.data.shards.records import Objects, Record
from yolor_ray.evaluate.coco import CocoResult
from yolor_ray.evaluate.multilabel import THRESHOLD
from yolor_ray.inference.dataset_images import decode_record
from yolor_ray.inference.postprocess import ImageDetections, select_detections

MIN_CONFIDENCE = 0.25
"""Least confidence of detections in examples, for classes without a measured best confidence."""


@dataclass(frozen=True)
class ExampleImage:
    """One image with its detections and annotations."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    detections: ImageDetections
    truth: Objects
    caption: str = ""
    """Labels of the whole image."""


def select_examples(dataset: Dataset, detections: Sequence[ImageDetections], boxes: CocoResult, count: int = 9) -> list[ExampleImage]:
    """Return images evenly spread over the dataset, with the detections above the best confidence of each class.

    Args:
        dataset: source of the images.
        detections: detections by image id.
        boxes: result on the boxes, which has the best confidence of each class.
        count: most images.
    """
    thresholds = np.array([score.confidence if score.confidence > 0 else MIN_CONFIDENCE for score in boxes.classes.values()])
    selected = np.linspace(0, dataset.images - 1, min(count, dataset.images)).round().astype(int).tolist()
    examples = []
    for group in dataset.row_groups:
        image_ids = [image_id for image_id in selected if 0 <= image_id - group.first_record < group.rows]
        group_records = to_records(read_row_group(dataset, group)) if image_ids else []
        for image_id in image_ids:
            image_detections, record = detections[image_id], group_records[image_id - group.first_record]
            confident = select_detections(image_detections, image_detections.confidences >= thresholds[image_detections.labels])
            caption = _caption(dataset.image_classes, image_detections, record)
            examples.append(ExampleImage(decode_record(record, dataset.url), confident, record.objects, caption))
    return examples


def _caption(names: Sequence[str], detections: ImageDetections, record: Record) -> str:
    """Return the labels of the whole image: the predicted ones with their probabilities, and the annotated ones."""
    if detections.image_labels is None:
        return ""
    likely = [f"{name} {p:.2f}" for name, p in zip(names, detections.image_labels, strict=True) if p >= THRESHOLD]
    predicted = ", ".join(likely) or "no label"
    annotated = ", ".join(names[label] for label in record.image_labels) or "none"
    return f"{predicted} (annotated: {annotated})" if "classify" in record.tasks else predicted

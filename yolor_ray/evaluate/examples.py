"""Choose images of a data set that show how well a network does, with what was found and what is annotated."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from yolor_ray.data.shards.dataset import Dataset, read_row_group, records
from yolor_ray.data.shards.records import Objects, Record
from yolor_ray.evaluate import coco
from yolor_ray.evaluate.multilabel import THRESHOLD
from yolor_ray.inference.dataset_images import pixels_of
from yolor_ray.inference.postprocess import ImageDetections, select_detections

LEAST_CONFIDENCE = 0.25
"""Least confidence shown where no better one was measured."""


@dataclass(frozen=True)
class Picture:
    """One image with what was found and what is there."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    found: ImageDetections
    truth: Objects
    caption: str = ""
    """What was found of the image as a whole."""


def pictures(dataset: Dataset, found: Sequence[ImageDetections], boxes: coco.CocoResult, count: int = 9) -> list[Picture]:
    """Return images from all over the data set with their detections of at least the best confidence of each class."""
    least = np.array([c.confidence if c.confidence > 0 else LEAST_CONFIDENCE for c in boxes.classes.values()])
    shown = np.linspace(0, dataset.images - 1, min(count, dataset.images)).round().astype(int).tolist()
    made = []
    for group in dataset.row_groups:
        inside = [image_id for image_id in shown if 0 <= image_id - group.first_record < group.rows]
        neighbours = records(read_row_group(dataset, group)) if inside else []
        for image_id in inside:
            located, record = found[image_id], neighbours[image_id - group.first_record]
            confident = select_detections(located, located.confidences >= least[located.labels])
            caption = _caption(dataset.image_classes, located, record)
            made.append(Picture(pixels_of(record, dataset.url), confident, record.objects, caption))
    return made


def _caption(names: Sequence[str], located: ImageDetections, record: Record) -> str:
    """Return the labels of the whole image: those found, with their probabilities, and those annotated."""
    if located.image_labels is None:
        return ""
    likely = [f"{name} {p:.2f}" for name, p in zip(names, located.image_labels, strict=True) if p >= THRESHOLD]
    found = ", ".join(likely) or "no label"
    known = ", ".join(names[label] for label in record.image_labels) or "none"
    return f"{found} (annotated: {known})" if "classify" in record.tasks else found

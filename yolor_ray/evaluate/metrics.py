"""Measure everything that a network has learned on everything that a packed data set is annotated for.

What an image is not annotated for counts for nothing there: neither as a miss nor as a false alarm.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from yolor_ray.data.shards.dataset import Dataset
from yolor_ray.data.shards.records import Record
from yolor_ray.evaluate import coco
from yolor_ray.evaluate.multilabel import LabelScore, label_metrics
from yolor_ray.evaluate.predict import annotations_of, truth_among
from yolor_ray.evaluate.retrieval import Views, represent, retrieval_metrics
from yolor_ray.inference.postprocess import ImageDetections

FITNESS = {"detect": "AP", "classify": "classify/mAP", "embed": "embed/mAP", "segment": "segment/AP", "pose": "pose/AP"}
"""The number of each task that says most: by these the best epoch is chosen."""
KINDS: dict[str, coco.Kind] = {"detect": "bbox", "segment": "segm", "pose": "keypoints"}
"""What COCO's rules compare for a task."""


@dataclass(frozen=True)
class EvalResult:
    """What one comparison of a network with a data set yields; None for a task that one of the two lacks."""

    metrics: dict[str, float]
    """Numbers of all tasks by name: COCO's for boxes, and of another task `TASK/NAME`; -1 where there is nothing to measure on."""
    boxes: coco.CocoResult
    masks: coco.CocoResult | None
    keypoints: coco.CocoResult | None
    labels: dict[str, LabelScore] | None
    """Of each label of whole images, in the data set's order."""
    rows: list[coco.Row]
    """The detections whose boxes were compared."""


@dataclass(frozen=True)
class _Image:
    image_id: int
    record: Record
    member: int
    """Which data set of a union it belongs to."""
    found: ImageDetections


def fitness(metrics: Mapping[str, float], tasks: Collection[str]) -> float:
    """Return the mean of the tasks' main numbers, of those that could be measured; -1 where none could."""
    numbers = [metrics.get(name, -1.0) for task, name in FITNESS.items() if task in tasks]
    known = [number for number in numbers if number >= 0]
    return float(np.mean(known)) if known else -1.0


def measure(dataset: Dataset, found: Sequence[ImageDetections], tasks: Collection[str]) -> EvalResult:
    """Return all numbers of what was found, by image id, for those of `tasks` that images are annotated for; of boxes always.

    Raises:
        DataError: as `coco.measure`.
    """
    images = _images(dataset, found)
    measured = {task for image in images for task in image.record.tasks} & set(tasks)
    boxes, rows = _compared(dataset, images, "detect")
    masks = _compared(dataset, images, "segment")[0] if "segment" in measured else None
    keypoints = _compared(dataset, images, "pose")[0] if "pose" in measured else None
    label_numbers, labels = _labels(dataset, images) if "classify" in measured else ({}, None)
    numbers = {
        "classify": label_numbers,
        "embed": retrieval_metrics(_views(images)) if "embed" in measured else {},
        "segment": masks.metrics if masks else {},
        "pose": keypoints.metrics if keypoints else {},
    }
    named = {f"{task}/{name}": value for task, one in numbers.items() for name, value in one.items()}
    return EvalResult({**boxes.metrics, **named}, boxes, masks, keypoints, labels, rows)


def _images(dataset: Dataset, found: Sequence[ImageDetections]) -> list[_Image]:
    members = [group.member for group in dataset.row_groups for _ in range(group.rows)]
    return [_Image(*one) for one in zip(range(dataset.images), annotations_of(dataset), members, found, strict=True)]


def _compared(dataset: Dataset, images: Sequence[_Image], task: str) -> tuple[coco.CocoResult, list[coco.Row]]:
    """Compare by COCO's rules what its annotations can judge: in a union, of each image the classes that its own data set names."""
    kind, classes = KINDS[task], dataset.classes
    known = [{classes.index(name) for name in one.classes} for one in dataset.members or (dataset,)]
    rows = [
        row
        for image in images
        if task in image.record.tasks
        for row in coco.detection_rows(image.image_id, image.found, image.record.width, image.record.height, kind)
        if row["category_id"] in known[image.member]
    ]
    return coco.measure(truth_among([image.record for image in images], classes, task), rows, kind), rows


def _labels(dataset: Dataset, images: Sequence[_Image]) -> tuple[dict[str, float], dict[str, LabelScore]]:
    known = [image for image in images if "classify" in image.record.tasks]
    truth = np.where([dataset.image_classes_of(image.member) for image in known], 0.0, np.nan)
    for row, image in zip(truth, known, strict=True):
        row[image.record.image_labels] = 1
    return label_metrics(np.array([image.found.image_labels for image in known]), truth, dataset.image_classes)


def _views(images: Sequence[_Image]) -> Views:
    known = [(image.record.camera, *represent(image.record.objects, image.found)) for image in images if "embed" in image.record.tasks]
    cameras = [np.full(len(identities), camera) for camera, identities, _ in known]
    return Views(np.concatenate([one for _, one, _ in known]), np.concatenate(cameras), np.concatenate([one for *_, one in known]))

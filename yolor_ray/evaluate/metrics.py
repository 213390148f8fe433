"""Measure every task that both a network has learned and a packed dataset is annotated for.

A task for which an image is not annotated counts neither as a miss nor as a false positive on that image.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from yolor_ray.class_names import keypoint_flags
from yolor_ray.data.shards.dataset import Dataset
from yolor_ray.data.shards.records import Record
from yolor_ray.evaluate import coco
from yolor_ray.evaluate.multilabel import LabelScore, label_metrics
from yolor_ray.evaluate.predict import make_task_truth, read_annotations
from yolor_ray.evaluate.retrieval import IdentifiedObjects, LocatedObjects, is_identified, match_embeddings, retrieval_metrics
from yolor_ray.inference.postprocess import ImageDetections

MAIN_METRICS = {"detect": "AP", "classify": "classify/mAP", "embed": "embed/mAP", "segment": "segment/AP", "pose": "pose/AP"}
"""Main metric of each task; the mean of the main metrics selects the best epoch."""


@dataclass(frozen=True)
class EvalResult:
    """Result of one comparison of a network with a dataset; None for a task that one of the two lacks."""

    metrics: dict[str, float]
    """Metrics of all tasks by name: COCO's for boxes, `TASK/NAME` for the other tasks; -1 where there is nothing to measure on."""
    boxes: coco.CocoResult
    masks: coco.CocoResult | None
    keypoints: coco.CocoResult | None
    labels: dict[str, LabelScore] | None
    """Numbers of each label of whole images, in the dataset's order."""
    located: LocatedObjects | None
    """Objects with an identity, and their embeddings."""
    rows: list[coco.ResultRow]
    """The detections whose boxes were compared."""
    task_rows: dict[str, list[coco.ResultRow]]
    """The masks and keypoints that were compared, by task; segment and pose, where measured."""

    @property
    def rows_by_task(self) -> dict[str, list[coco.ResultRow]]:
        """Return the rows that were compared by task: boxes, and masks and keypoints where measured."""
        return {"detect": self.rows, **self.task_rows}


@dataclass(frozen=True)
class _Image:
    image_id: int
    record: Record
    member: int
    """Index of the image's dataset within a union."""
    detections: ImageDetections


def fitness(metrics: Mapping[str, float], tasks: Collection[str]) -> float:
    """Return the mean of the tasks' main metrics that have a value; -1 without such a metric."""
    values = [coco.value_or(metrics.get(name, coco.NO_VALUE), None) for task, name in MAIN_METRICS.items() if task in tasks]
    measured = [value for value in values if value is not None]
    return float(np.mean(measured)) if measured else coco.NO_VALUE


def best_thresholds(boxes: coco.CocoResult) -> dict[str, float]:
    """Return the confidence threshold with the best F1 score at IoU .50 by class name; classes without true positives have none.

    A threshold has four decimals and lies just under the confidence of the last counted detection, so that `confidence > threshold`
    keeps this detection.
    """
    confidences = {name: score.confidence for name, score in boxes.classes.items() if score.confidence >= 0}
    return {name: max(math.floor(confidence * 1e4 - 0.5), 0) / 1e4 for name, confidence in confidences.items()}


def measure(dataset: Dataset, detections: Sequence[ImageDetections], tasks: Collection[str]) -> EvalResult:
    """Measure detections, ordered by image id, for those of `tasks` that images are annotated for; boxes are always measured.

    Raises:
        DataError: as `coco.measure`.
    """
    members = np.repeat(dataset.row_groups.members, dataset.row_groups.rows).tolist()
    images = [_Image(*fields) for fields in zip(range(dataset.images), read_annotations(dataset), members, detections, strict=True)]
    measured = {task for image in images for task in image.record.tasks} & set(tasks)
    boxes, rows = _measure_coco(dataset, images, "detect")
    compared = {task: _measure_coco(dataset, images, task) for task in ("segment", "pose") if task in measured}
    masks, keypoints = (compared[task][0] if task in compared else None for task in ("segment", "pose"))
    task_rows: dict[str, list[coco.ResultRow]] = {task: own for task, (_, own) in compared.items()}
    label_numbers, labels = _measure_labels(dataset, images) if "classify" in measured else ({}, None)
    located = _locate_objects(images) if "embed" in measured else None
    task_metrics = {
        "classify": label_numbers,
        "embed": retrieval_metrics(located.objects) if located else {},
        "segment": masks.metrics if masks else {},
        "pose": keypoints.metrics if keypoints else {},
    }
    named = {f"{task}/{name}": value for task, metrics in task_metrics.items() for name, value in metrics.items()}
    return EvalResult({**boxes.metrics, **named}, boxes, masks, keypoints, labels, located, rows, task_rows)


def _measure_coco(dataset: Dataset, images: Sequence[_Image], task: str) -> tuple[coco.CocoResult, list[coco.ResultRow]]:
    """Compare by COCO's rules: keypoints in the classes that have some, and an image of a union in the classes of its own dataset."""
    iou_type, classes = coco.IOU_TYPES[task], dataset.classes
    compared = keypoint_flags(dataset).any(axis=1) if task == "pose" else np.ones(len(classes), np.bool_)
    known = [dataset.classes_of(member) & compared for member in range(max(len(dataset.members), 1))]
    rows = [
        row
        for image in images
        if task in image.record.tasks
        for row in coco.make_result_rows(image.image_id, image.detections, image.record.width, image.record.height, iou_type)
        if known[image.member][row["category_id"]]
    ]
    return coco.measure(make_task_truth([image.record for image in images], classes, task), rows, iou_type), rows


def _measure_labels(dataset: Dataset, images: Sequence[_Image]) -> tuple[dict[str, float], dict[str, LabelScore]]:
    annotated = [image for image in images if "classify" in image.record.tasks]
    truth = np.where([dataset.image_classes_of(image.member) for image in annotated], 0.0, np.nan)
    for row, image in zip(truth, annotated, strict=True):
        row[image.record.image_labels] = 1
    return label_metrics(np.array([image.detections.image_labels for image in annotated]), truth, dataset.image_classes)


def _locate_objects(images: Sequence[_Image]) -> LocatedObjects:
    annotated = [image for image in images if "embed" in image.record.tasks]
    matched = [match_embeddings(image.record.objects, image.detections) for image in annotated]
    cameras = [np.full(len(identities), image.record.camera) for image, (identities, _) in zip(annotated, matched, strict=True)]
    identities, embeddings = zip(*matched, strict=True)
    image_ids = [np.full(len(found), image.image_id) for image, found in zip(annotated, identities, strict=True)]
    labels = [image.record.objects.labels[is_identified(image.record.objects)] for image in annotated]
    objects = IdentifiedObjects(np.concatenate(identities), np.concatenate(cameras), np.concatenate(embeddings))
    return LocatedObjects(objects, np.concatenate(image_ids), np.concatenate(labels))

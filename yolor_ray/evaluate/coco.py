"""Score detections against annotations by the rules of COCO.

This module converts records and detections to COCO's JSON, and the arrays of the scorer (see `scorer.py`) to named numbers.
A number is -1 (NO_VALUE) if the dataset has no object to measure on, as in pycocotools; see `value_or`.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from hotcoco import COCOeval

from yolor_ray.data import rle
from yolor_ray.data.coco_rules import MAX_DETECTIONS, object_area, warn_of_limit
from yolor_ray.data.shards.records import Objects
from yolor_ray.errors import DataError
from yolor_ray.evaluate import scorer
from yolor_ray.evaluate.scorer import RESULT_FIELDS, IouType
from yolor_ray.evaluate.truth import check_values, complete_truth, match_ids, number_ids
from yolor_ray.inference.postprocess import ImageDetections
from yolor_ray.io import storage

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
KEYPOINT_METRICS = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
NO_VALUE = -1.0
"""COCO's number for "no value"."""

IOU_TYPES: dict[str, IouType] = {"detect": "bbox", "segment": "segm", "pose": "keypoints"}
"""COCO's kind of comparison for a task."""
TASKS: dict[IouType, str] = {iou_type: task for task, iou_type in IOU_TYPES.items()}
ResultRow = dict[str, Any]
"""One detection in COCO's results format: image_id, category_id, score and bbox, segmentation or keypoints."""
Missing = TypeVar("Missing")


@dataclass(frozen=True)
class ClassScore:
    """Numbers of one class."""

    AP: float
    """Mean over IoU .50 to .95; -1 without objects."""
    AP50: float
    """AP at IoU .50; -1 without objects."""
    objects: int
    """Number of annotated objects without crowd regions."""
    confidence: float
    """Confidence of the best F1 score at IoU .50, a good confidence threshold for serving; -1 without true positives."""


@dataclass(frozen=True)
class CocoResult:
    """Result of one comparison of detections with annotations; K classes, 101 recalls from 0 to 1."""

    metrics: dict[str, float]
    """The numbers of COCO's table: METRICS, or KEYPOINT_METRICS for keypoints."""
    classes: dict[str, ClassScore]
    """Numbers of each class, in the dataset's order."""
    precision50: np.ndarray
    """(101, K): precision at each recall, IoU .50; NaN for a class without objects."""
    precision: np.ndarray
    """(101, K): the same, mean over IoU .50 to .95."""
    images_over_limit: int
    """Images with more objects of one class than COCO compares detections; AP cannot reach 1 there."""


def value_or(number: float, missing: Missing) -> float | Missing:
    """Return a number of COCO's table, or `missing` in place of -1 (NO_VALUE) and NaN."""
    return number if number >= 0 else missing


def make_truth(images: Iterable[tuple[int, int, int, Objects]], classes: Iterable[str]) -> dict[str, Any]:
    """Make COCO's annotation JSON from (image id, width, height, objects); category ids are indices of `classes`."""
    truth: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": index, "name": name} for index, name in enumerate(classes)],
    }
    for image_id, width, height, objects in images:
        truth["images"].append({"id": image_id, "width": width, "height": height})
        for index in range(len(objects.labels)):
            annotation = _annotation(objects, index, width, height)
            truth["annotations"].append({"id": len(truth["annotations"]) + 1, "image_id": image_id} | annotation)
    return truth


def _annotation(objects: Objects, index: int, width: int, height: int) -> dict[str, Any]:
    x1, y1, x2, y2 = objects.boxes_xyxy[index].tolist()
    annotation: dict[str, Any] = {
        "category_id": int(objects.labels[index]),
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": _area(objects, index, width, height),
        "iscrowd": int(objects.crowd[index]),
    }
    if mask := objects.masks and objects.masks[index]:
        annotation["segmentation"] = {"size": [height, width], "counts": mask.decode("ascii")}
    if objects.keypoints is not None:
        # COCO compares neither unknown keypoints (visibility -1) nor unlabelled ones (0).
        keypoints = np.maximum(objects.keypoints[index], (-np.inf, -np.inf, 0))
        annotation["keypoints"] = keypoints.reshape(-1).tolist()
        annotation["num_keypoints"] = int((keypoints[:, 2] > 0).sum())
    return annotation


def _area(objects: Objects, index: int, width: int, height: int) -> float:
    """Return the area of a packed object, px²; datasets of version 0.2 may have areas of 0 for objects with a box and a mask."""
    area = float(objects.areas[index])
    if area > 0:
        return area
    x1, y1, x2, y2 = objects.boxes_xyxy[index].tolist()
    mask = objects.masks and objects.masks[index]
    return object_area(None, (x2 - x1, y2 - y1), rle.mask_area(mask, width, height) if mask else None)


def make_result_rows(image_id: int, detections: ImageDetections, width: int, height: int, iou_type: IouType = "bbox") -> list[ResultRow]:
    """Make COCO result rows of the detections in an image of `width` x `height` pixels; category ids are the labels."""
    columns = detections.labels.tolist(), detections.confidences.tolist(), _compared_values(detections, width, height, iou_type)
    return [
        {"image_id": image_id, "category_id": label, "score": confidence, RESULT_FIELDS[iou_type]: value}
        for label, confidence, value in zip(*columns, strict=True)
    ]


def _compared_values(detections: ImageDetections, width: int, height: int, iou_type: IouType) -> list[Any]:
    """Return each object's box as x, y, width and height, its mask, or its keypoints, in COCO's JSON."""
    if iou_type == "segm":
        assert detections.masks is not None
        return [{"size": [height, width], "counts": mask.decode("ascii")} for mask in detections.masks]
    if iou_type == "keypoints":
        assert detections.keypoints is not None
        return detections.keypoints.reshape(-1, detections.keypoints.shape[1] * 3).tolist()
    corners = detections.boxes_xyxy
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()


def score(truth: dict[str, Any], rows: list[ResultRow], iou_type: IouType = "bbox") -> dict[str, float]:
    """Return the numbers of COCO's table by name: METRICS, or KEYPOINT_METRICS for keypoints.

    Fields of annotations that COCO's rules need beside the compared one may be missing or implausible; see `complete_truth`.

    Raises:
        DataError: as `measure`, or a compared value cannot be compared; see `check_values`.
    """
    truth, rows = number_ids(complete_truth(truth), match_ids(rows))
    check_values(truth, rows, iou_type)
    result = measure(truth, rows, iou_type)
    warn_of_limit(TASKS[iou_type], result.images_over_limit)
    return result.metrics


def measure(truth: dict[str, Any], rows: list[ResultRow], iou_type: IouType = "bbox") -> CocoResult:
    """Compare detections with annotations; neither argument is changed.

    COCO's rules for keypoints ignore objects without labelled keypoints, and have no number for small objects. Keypoints are compared
    with COCO's sigmas if objects have its 17 keypoints, else all with `OTHER_SIGMA`.

    Raises:
        DataError: an annotation or a row lacks a field, or names an image or a category that `truth` lacks.
    """
    matches = match_detections(truth, rows, iou_type)
    curves = scorer.accumulate(matches)
    names = KEYPOINT_METRICS if iou_type == "keypoints" else METRICS
    metrics = {name: float(value) for name, value in zip(names, matches.stats, strict=True)}
    precision = curves["precision"][:, :, :, 0, -1]
    class_scores = _class_scores(truth, matches.params.cat_ids, precision, curves["scores"][0, :, :, 0, -1])
    precision = np.where(precision == NO_VALUE, np.nan, precision)
    return CocoResult(
        metrics,
        class_scores,
        precision50=precision[0],
        precision=precision.mean(axis=0),
        images_over_limit=_count_over_limit(truth, iou_type),
    )


def match_detections(truth: dict[str, Any], rows: list[ResultRow], iou_type: IouType = "bbox") -> COCOeval:
    """Return hotcoco's scorer with detections and objects of each image matched, before accumulation.

    Raises:
        DataError: as `measure`.
    """
    _check(truth, rows, iou_type)
    return scorer.match_detections(truth, rows, iou_type)


def score_files(truth_url: str, results_url: str, iou_type: IouType) -> dict[str, float]:
    """Score a COCO results file against a COCO annotation file."""
    truth, rows = _read_json(truth_url), _read_json(results_url)
    if not isinstance(truth, dict) or not {"images", "annotations", "categories"} <= truth.keys():
        raise DataError(f"{truth_url}: expected COCO annotations, an object with images, annotations and categories")
    if not isinstance(rows, list):
        raise DataError(f"{results_url}: found a JSON {type(rows).__name__}, expected COCO results, a list of detections")
    try:
        return score(truth, rows, iou_type)
    except DataError as error:
        raise DataError(f"{results_url}: {error}") from error


def _read_json(url: str) -> Any:
    try:
        return json.loads(storage.read_bytes(url))
    except ValueError as error:
        raise DataError(f"{url}: expected JSON: {error}") from error


def _check(truth: dict[str, Any], rows: list[ResultRow], iou_type: IouType) -> None:
    field = RESULT_FIELDS[iou_type]
    images = {image["id"] for image in truth["images"]}
    categories = {category["id"] for category in truth["categories"]}
    ids = {"image_id", "category_id"}
    for name, items, needed in (("annotation", truth["annotations"], ids | {field}), ("detection", rows, ids | {field, "score"})):
        for index, item in enumerate(items):
            if not needed <= item.keys():
                missing = min(needed - item.keys())
                raise DataError(f"{name} {index}: found no {missing!r}, which scoring {iou_type} needs")
            if item["image_id"] not in images:
                raise DataError(f"{name} {index}: found image_id {item['image_id']}, expected one of the {len(images)} annotated images")
            if item["category_id"] not in categories:
                raise DataError(f"{name} {index}: found category_id {item['category_id']}, expected one of {sorted(categories)}")
    if iou_type == "keypoints" and len({len(item["keypoints"]) for item in [*truth["annotations"], *rows]}) > 1:
        raise DataError("keypoints: found lists of different lengths, expected the same 3 numbers for each keypoint everywhere")


def _count_over_limit(truth: dict[str, Any], iou_type: IouType) -> int:
    """Return the number of images with more objects of one class than the scorer compares detections."""
    counted = [annotation for annotation in truth["annotations"] if not annotation.get("iscrowd")]
    if iou_type == "keypoints":
        counted = [annotation for annotation in counted if annotation["num_keypoints"]]
    objects = Counter((annotation["image_id"], annotation["category_id"]) for annotation in counted)
    limit = MAX_DETECTIONS[TASKS[iou_type]]
    return len({image_id for (image_id, _), count in objects.items() if count > limit})


def _class_scores(truth: dict[str, Any], category_ids: list[int], precision: np.ndarray, confidences: np.ndarray) -> dict[str, ClassScore]:
    """Return the numbers of each class, from precision (10, 101, K) and confidences at IoU .50 (101, K)."""
    names = {category["id"]: category["name"] for category in truth["categories"]}
    objects = Counter(annotation["category_id"] for annotation in truth["annotations"] if not annotation.get("iscrowd"))
    scores = {}
    for k, category in enumerate(category_ids):
        ap, ap50 = float(precision[:, :, k].mean()), float(precision[0, :, k].mean())
        scores[names[category]] = ClassScore(ap, ap50, objects[category], _best_confidence(precision[0, :, k], confidences[:, k]))
    return scores


def _best_confidence(precision: np.ndarray, confidences: np.ndarray) -> float:
    """Return the confidence of the point with the best F1 on one (101,) precision curve."""
    recalls = np.linspace(0, 1, len(precision))
    f1 = 2 * precision * recalls / np.maximum(precision + recalls, 1e-9)
    return float(confidences[f1.argmax()]) if f1.max() > 0 else NO_VALUE

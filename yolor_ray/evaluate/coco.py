"""Score detections against annotations by the COCO rules.

pycocotools is the scorer; this file turns records and predictions into its JSON, and its arrays into named numbers.
COCO's convention holds throughout: a number is -1 where the data set has no object that it could be measured on.
"""

import contextlib
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from yolor_ray.data.shards.records import Objects
from yolor_ray.errors import DataError
from yolor_ray.inference.postprocess import ImageDetections
from yolor_ray.io import storage

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
KEYPOINT_METRICS = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
OTHER_SIGMA = 0.05
"""Keypoint similarity falls with distance / (2 · sigma · size of the object); bodies of other than COCO's 17 joints get this sigma."""

Kind = Literal["bbox", "segm", "keypoints"]
FIELDS: dict[Kind, str] = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}
"""Where annotations and detections hold what is compared."""
Row = dict[str, Any]
"""One detection as COCO's results format has it: image_id, category_id, score and bbox, segmentation or keypoints."""


@dataclass(frozen=True)
class ClassScore:
    """What was measured on one class."""

    AP: float
    """Mean over IoU .50 to .95; -1 without objects."""
    AP50: float
    """At IoU .50; -1 without objects."""
    objects: int
    """Annotated objects, crowd regions apart."""
    confidence: float
    """Where the F1 score at IoU .50 peaks: a good least confidence to serve with; -1 without true positives."""


@dataclass(frozen=True)
class CocoResult:
    """What one comparison of detections with annotations yields; K classes, 101 recalls from 0 to 1."""

    metrics: dict[str, float]
    """The numbers of COCO's table: METRICS, or KEYPOINT_METRICS for keypoints."""
    classes: dict[str, ClassScore]
    """The same for each class, in the data set's order."""
    precision50: np.ndarray
    """(101, K): precision at each recall, IoU .50; NaN for a class without objects."""
    precision: np.ndarray
    """(101, K): the same, mean over IoU .50 to .95."""


def truth(images: Iterable[tuple[int, int, int, Objects]], classes: Iterable[str]) -> dict[str, Any]:
    """Make COCO's annotation JSON from (image id, width, height, objects); category ids are indices of `classes`."""
    found: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": index, "name": name} for index, name in enumerate(classes)],
    }
    for image_id, width, height, objects in images:
        found["images"].append({"id": image_id, "width": width, "height": height})
        for index in range(len(objects.labels)):
            annotation = _annotation(objects, index, width, height)
            found["annotations"].append({"id": len(found["annotations"]) + 1, "image_id": image_id} | annotation)
    return found


def _annotation(objects: Objects, index: int, width: int, height: int) -> Row:
    x1, y1, x2, y2 = objects.boxes_xyxy[index].tolist()
    annotation: Row = {
        "category_id": int(objects.labels[index]),
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": float(objects.areas[index]),
        "iscrowd": int(objects.crowd[index]),
    }
    if objects.masks is not None:
        annotation["segmentation"] = {"size": [height, width], "counts": objects.masks[index].decode("ascii")}
    if objects.keypoints is not None:
        # Of a joint that the data set knows nothing of (-1), as of an unlabelled one (0), COCO compares nothing.
        keypoints = np.maximum(objects.keypoints[index], (-np.inf, -np.inf, 0))
        annotation["keypoints"] = keypoints.reshape(-1).tolist()
        annotation["num_keypoints"] = int((keypoints[:, 2] > 0).sum())
    return annotation


def detection_rows(image_id: int, located: ImageDetections, width: int, height: int, kind: Kind = "bbox") -> list[Row]:
    """Make COCO result rows of what was found in an image of so many pixels; category ids are the labels."""
    columns = located.labels.tolist(), located.confidences.tolist(), _compared(located, width, height, kind)
    return [
        {"image_id": image_id, "category_id": label, "score": confidence, FIELDS[kind]: found}
        for label, confidence, found in zip(*columns, strict=True)
    ]


def _compared(located: ImageDetections, width: int, height: int, kind: Kind) -> list[Any]:
    """Return each object's box as x, y, width and height, or its mask, or its joints, in COCO's JSON."""
    if kind == "segm":
        assert located.masks is not None
        return [{"size": [height, width], "counts": mask.decode("ascii")} for mask in located.masks]
    if kind == "keypoints":
        assert located.keypoints is not None
        return located.keypoints.reshape(-1, located.keypoints.shape[1] * 3).tolist()
    corners = located.boxes_xyxy
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()


def score(truth: dict[str, Any], rows: list[Row], kind: Kind = "bbox") -> dict[str, float]:
    """Return the numbers of COCO's table by name: METRICS, or KEYPOINT_METRICS for keypoints."""
    return measure(truth, rows, kind).metrics


def per_class_ap(truth: dict[str, Any], rows: list[Row], kind: Kind = "bbox") -> dict[str, float]:
    """Return the AP of each class by name; -1 for a class without objects."""
    return {name: found.AP for name, found in measure(truth, rows, kind).classes.items()}


def measure(truth: dict[str, Any], rows: list[Row], kind: Kind = "bbox") -> CocoResult:
    """Compare detections with annotations; neither argument is changed.

    By COCO's rules for keypoints an object without labelled ones is ignored, and there is no number for small objects. Joints are
    compared with COCO's sigmas where an object has its 17, else all with `OTHER_SIGMA`.

    Raises:
        DataError: an annotation or a row lacks a field, or names an image or a category that `truth` lacks.
    """
    scorer = matched(truth, rows, kind)
    with contextlib.redirect_stdout(io.StringIO()):
        scorer.accumulate()
        scorer.summarize()
    names = KEYPOINT_METRICS if kind == "keypoints" else METRICS
    metrics = dict(zip(names, scorer.stats.tolist(), strict=True))
    precision = scorer.eval["precision"][:, :, :, 0, -1]
    precision = np.where(precision < 0, np.nan, precision)
    return CocoResult(metrics, _classes(truth, scorer), precision50=precision[0], precision=precision.mean(axis=0))


def matched(truth: dict[str, Any], rows: list[Row], kind: Kind = "bbox") -> COCOeval:
    """Return pycocotools' scorer with detections and objects of each image matched, and nothing summed up yet.

    Raises:
        DataError: as `measure`.
    """
    _check(truth, rows, kind)
    with contextlib.redirect_stdout(io.StringIO()):
        scorer = _scorer(truth, rows, kind)
        scorer.evaluate()
    return scorer


def score_files(truth_url: str, results_url: str, kind: Kind) -> dict[str, float]:
    """Score a COCO results file against a COCO annotation file."""
    truth, rows = _read_json(truth_url), _read_json(results_url)
    if not isinstance(truth, dict) or not {"images", "annotations", "categories"} <= truth.keys():
        raise DataError(f"{truth_url}: expected COCO annotations, an object with images, annotations and categories")
    if not isinstance(rows, list):
        raise DataError(f"{results_url}: found a JSON {type(rows).__name__}, expected COCO results, a list of detections")
    try:
        return score(truth, rows, kind)
    except DataError as error:
        raise DataError(f"{results_url}: {error}") from error


def _read_json(url: str) -> Any:
    try:
        return json.loads(storage.read_bytes(url))
    except ValueError as error:
        raise DataError(f"{url}: expected JSON: {error}") from error


def _check(truth: dict[str, Any], rows: list[Row], kind: Kind) -> None:
    field = FIELDS[kind]
    images = {image["id"] for image in truth["images"]}
    categories = {category["id"] for category in truth["categories"]}
    for what, items, fields in (("annotation", truth["annotations"], {field}), ("detection", rows, {field, "score"})):
        for index, item in enumerate(items):
            missing = sorted((fields | {"image_id", "category_id"}) - item.keys())
            if missing:
                raise DataError(f"{what} {index}: found no {missing[0]!r}, which scoring {kind} needs")
            if item["image_id"] not in images:
                raise DataError(f"{what} {index}: found image_id {item['image_id']}, expected one of the {len(images)} annotated images")
            if item["category_id"] not in categories:
                raise DataError(f"{what} {index}: found category_id {item['category_id']}, expected one of {sorted(categories)}")
    if kind == "keypoints" and len({len(item["keypoints"]) for item in [*truth["annotations"], *rows]}) > 1:
        raise DataError("keypoints: found lists of different lengths, expected the same 3 numbers for each joint everywhere")


def _scorer(truth: dict[str, Any], rows: list[Row], kind: Kind) -> COCOeval:
    # The scorer writes into what it is given, and takes an annotation with id 0 for "no match".
    annotations = [{"iscrowd": 0} | annotation | {"id": index + 1} for index, annotation in enumerate(truth["annotations"])]
    # With a bbox beside mask or keypoints, loadRes would sort detections into APs, APm, APl by the area of the box.
    copies = [{key: row[key] for key in ("image_id", "category_id", "score", FIELDS[kind])} for row in rows]
    known = _indexed(truth, annotations)
    scorer = COCOeval(known, known.loadRes(copies) if copies else _indexed(truth, []), kind)
    if kind == "keypoints" and annotations:
        joints = len(annotations[0]["keypoints"]) // 3
        if joints != len(scorer.params.kpt_oks_sigmas):
            scorer.params.kpt_oks_sigmas = np.full(joints, OTHER_SIGMA)
    return scorer


def _indexed(truth: dict[str, Any], annotations: list[Row]) -> COCO:
    found = COCO()
    found.dataset = {"images": truth["images"], "categories": truth["categories"], "annotations": annotations}
    found.createIndex()
    return found


def _classes(truth: dict[str, Any], scorer: COCOeval) -> dict[str, ClassScore]:
    names = {category["id"]: category["name"] for category in truth["categories"]}
    objects = [a["category_id"] for a in truth["annotations"] if not a.get("iscrowd")]
    found = {}
    for k, category in enumerate(scorer.params.catIds):
        precision, confidences = (scorer.eval[key][:, :, k, 0, -1] for key in ("precision", "scores"))
        ap, ap50 = float(precision.mean()), float(precision[0].mean())
        found[names[int(category)]] = ClassScore(ap, ap50, objects.count(category), _best_confidence(precision[0], confidences[0]))
    return found


def _best_confidence(precision: np.ndarray, confidences: np.ndarray) -> float:
    """Return the confidence of the point with the best F1 on one (101,) precision curve."""
    recalls = np.linspace(0, 1, len(precision))
    f1 = 2 * precision * recalls / np.maximum(precision + recalls, 1e-9)
    return float(confidences[f1.argmax()]) if f1.max() > 0 else -1.0

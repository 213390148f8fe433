"""Turn what a network found, and what it is, into the JSON that `answers` describes.

What a network has not learned, and what a request switched off, is absent from its answer, never null.
"""

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolor_ray.data.images.letterbox import Letterbox
from yolor_ray.inference.detect import Detections
from yolor_ray.inference.postprocess import ImageDetections, to_image_detections
from yolor_ray.model.heads.embed import EMBEDDING
from yolor_ray.model.weights import WeightsInfo
from yolor_ray.serve.engine import Options
from yolor_ray.serve.http import errors
from yolor_ray.serve.polygons import outlines

MOST_MASK_PIXELS = 250 * 10**6
"""Pixels of boxes whose masks one request may ask for, all objects together: up to some 15 s of work, where masks are ragged."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Described:
    """What is in one image, as `Detection` and `ImageLabel` have it."""

    detections: list[Json]
    labels: list[Json] | None


def describe(info: WeightsInfo, detections: Detections, place: Letterbox, options: Options) -> Described:
    """Return all that was found and asked for, in pixels of the image; may take seconds for many masks.

    Raises:
        Problem: more masks were asked for than one request may.
    """
    masks = options.masks and detections.coefficients is not None
    if masks:
        _check_mask_pixels(place.to_image(detections.boxes_xyxy.numpy()))
    located = to_image_detections(detections, place, masks=masks)
    found = _boxes(info, located)
    if located.masks is not None:
        _add(found, "mask", [_mask(counts, place) for counts in located.masks])
    if options.keypoints and located.keypoints is not None:
        _add(found, "keypoints", [_keypoints(info, points) for points in located.keypoints.tolist()])
    if options.embeddings and located.embeddings is not None:
        _add(found, "embedding", [base64.b64encode(numbers.tobytes()).decode() for numbers in located.embeddings.astype("<f4")])
    labels = None if located.image_labels is None or not options.labels else _labels(info, located.image_labels)
    return Described(found, labels)


def describe_model(info: WeightsInfo) -> Json:
    """Return what weights tell of themselves, as `ModelCard` has it."""
    card: Json = {"name": info.name, "version": info.version, "classes": list(info.classes), "tasks": list(info.tasks)}
    if "classify" in info.tasks:
        card["image_classes"] = list(info.image_classes)
    if "pose" in info.tasks:
        card["keypoint_names"] = list(info.keypoint_names)
    if "embed" in info.tasks:
        card["embedding_numbers"] = EMBEDDING
    return {**card, "image_px": info.image_px, "fused": info.fused, "metrics": info.metrics}


def _check_mask_pixels(boxes_xyxy: np.ndarray) -> None:
    pixels = int((boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=1).sum())
    if pixels > MOST_MASK_PIXELS:
        raise errors.ApiError(
            "masks_too_large",
            f"found {len(boxes_xyxy)} objects whose boxes have {pixels} pixels, expected at most {MOST_MASK_PIXELS} for masks: "
            "send a smaller image, ask for fewer objects (confidence, iou, max_detections) or for none of their masks (masks=false)",
        )


def _boxes(info: WeightsInfo, located: ImageDetections) -> list[Json]:
    rows = zip(located.boxes_xyxy.tolist(), located.labels.tolist(), located.confidences.tolist(), strict=True)
    return [
        {
            "box": [round(edge, 2) for edge in box],
            "class": info.classes[label],
            "class_id": label,
            "confidence": round(confidence, 5),
        }
        for box, label, confidence in rows
    ]


def _add(detections: list[Json], name: str, values: list[Any]) -> None:
    for detection, value in zip(detections, values, strict=True):
        detection[name] = value


def _mask(counts: bytes, place: Letterbox) -> Json:
    area, polygons = outlines(counts, place.height)
    return {"rle": {"size": [place.height, place.width], "counts": counts.decode("ascii")}, "polygons": polygons, "area": area}


def _keypoints(info: WeightsInfo, points: list[list[float]]) -> list[Json]:
    return [
        {"name": name, "x": round(x, 2), "y": round(y, 2), "confidence": round(confidence, 5)}
        for name, (x, y, confidence) in zip(info.keypoint_names, points, strict=True)
    ]


def _labels(info: WeightsInfo, probabilities: np.ndarray) -> list[Json]:
    best_first = np.argsort(-probabilities, kind="stable").tolist()
    return [{"label": info.image_classes[i], "label_id": i, "confidence": round(float(probabilities[i]), 5)} for i in best_first]

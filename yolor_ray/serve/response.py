"""Convert detections, and the description of the weights, into the JSON of `http/schemas.py`.

A task that the network has not learned, or that a request switched off, is absent from the response and never null.
"""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from yolor_ray.inference.detect import Detections
from yolor_ray.inference.polygons import mask_polygons
from yolor_ray.inference.postprocess import ImageDetections, to_image_detections
from yolor_ray.inference.views import OpenImage, View, merge_views
from yolor_ray.model.heads.embed import EMBEDDING
from yolor_ray.model.weights import WeightsInfo
from yolor_ray.serve.engine import DetectOptions
from yolor_ray.serve.http import errors

MAX_MASK_PIXELS = 250 * 10**6
"""Largest total area, in pixels, of the boxes with a mask in one response: about 15 s of computation for ragged masks."""

Json = dict[str, Any]


def locate(info: WeightsInfo, image: OpenImage, found: Sequence[tuple[View, Detections]], options: DetectOptions) -> ImageDetections:
    """Return the detections of an image from those of its views; many masks may take seconds.

    Raises:
        ApiError: the request asks for more masks than MAX_MASK_PIXELS allows.
    """
    masks = options.masks and any(detections.coefficients is not None for _, detections in found)
    if masks:
        _check_mask_pixels([view.letterbox.to_image(detections.boxes_xyxy.numpy()) for view, detections in found])
    located = [(view.tile, to_image_detections(detections, view.letterbox, info.keypoint_flags, masks=masks)) for view, detections in found]
    return merge_views(located, image.width, image.height, iou=options.iou, max_detections=options.max_detections)


def detections_json(info: WeightsInfo, located: ImageDetections, image: OpenImage, options: DetectOptions) -> Json:
    """Return the fields `detections` and, with the task classify, `labels` of a response."""
    objects = _boxes(info, located)
    if located.masks is not None:
        _add(objects, "mask", [_mask(counts, image) for counts in located.masks])
    if options.keypoints and located.keypoints is not None:
        points = zip(located.labels.tolist(), located.keypoints.tolist(), strict=True)
        _add(objects, "keypoints", [_keypoints(info, label, points_of_one) for label, points_of_one in points])
    if options.embeddings and located.embeddings is not None:
        _add(objects, "embedding", [base64.b64encode(numbers.tobytes()).decode() for numbers in located.embeddings.astype("<f4")])
    if options.labels and located.image_labels is not None:
        return {"detections": objects, "labels": _labels(info, located.image_labels)}
    return {"detections": objects}


def model_json(info: WeightsInfo) -> Json:
    """Return the fields of `ModelCard` that come from the weights."""
    card: Json = {"name": info.name, "version": info.version, "classes": list(info.classes), "tasks": list(info.tasks)}
    if "classify" in info.tasks:
        card["image_classes"] = list(info.image_classes)
    if "pose" in info.tasks:
        card["keypoint_names"] = list(info.keypoint_names)
        card["class_keypoints"] = {name: list(keypoints) for name, keypoints in info.class_keypoints.items()}
    if "embed" in info.tasks:
        card["embedding_numbers"] = EMBEDDING
    return {**card, "image_px": info.image_px, "fused": info.fused, "metrics": info.metrics, "thresholds": info.thresholds}


def _check_mask_pixels(boxes_xyxy_of_views: Sequence[np.ndarray]) -> None:
    boxes_xyxy = np.concatenate(boxes_xyxy_of_views)
    pixels = int((boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=1).sum())
    if pixels > MAX_MASK_PIXELS:
        raise errors.ApiError(
            "masks_too_large",
            f"found {len(boxes_xyxy)} objects whose boxes have {pixels} pixels, expected at most {MAX_MASK_PIXELS} for masks: "
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


def _add(objects: list[Json], name: str, values: list[Any]) -> None:
    for fields, value in zip(objects, values, strict=True):
        fields[name] = value


def _mask(counts: bytes, image: OpenImage) -> Json:
    area, polygons = mask_polygons(counts, image.height)
    return {"rle": {"size": [image.height, image.width], "counts": counts.decode("ascii")}, "polygons": polygons, "area": area}


def _keypoints(info: WeightsInfo, label: int, points: list[list[float]]) -> list[Json]:
    """Return the keypoints of the class, out of those of all classes."""
    own = [(info.keypoint_names[index], *points[index]) for index in info.keypoint_indices[label]]
    return [{"name": name, "x": round(x, 2), "y": round(y, 2), "confidence": round(confidence, 5)} for name, x, y, confidence in own]


def _labels(info: WeightsInfo, probabilities: np.ndarray) -> list[Json]:
    best_first = np.argsort(-probabilities, kind="stable").tolist()
    return [{"label": info.image_classes[i], "label_id": i, "confidence": round(float(probabilities[i]), 5)} for i in best_first]

"""Complete and check the files of users for COCO's rules, which need fields that many tools leave out or fill with zeros."""

import logging
from typing import Any

from yolor_ray.data import rle
from yolor_ray.data.coco_rules import is_crowd, object_area
from yolor_ray.errors import DataError
from yolor_ray.evaluate.scorer import RESULT_FIELDS, IouType
from yolor_ray.pack.annotations.masks import EncodedMask, MaskError, check_segmentation, encode_segmentation, segmentation_bounds
from yolor_ray.pack.annotations.values import claimed_size, id_value, is_number

logger = logging.getLogger(__name__)

ID_FIELDS = ("id", "image_id", "category_id")
MAX_ID = 2**53
"""Largest id that keeps its number; a float holds every whole number up to it."""


def complete_truth(truth: dict[str, Any]) -> dict[str, Any]:
    """Return COCO annotations in which each annotation has `area`, `iscrowd` and `bbox`, and with keypoints `num_keypoints` too.

    The argument is not changed. An area that is missing or not plausible is replaced by that of the mask, or else of the box. Absent
    boxes become the extent of the mask, or else of the labelled keypoints, because COCO's rules read a box beside keypoints.
    Ids become numbers where they stand for numbers.
    """
    truth = truth | {name: match_ids(truth[name]) for name in ("images", "annotations", "categories")}
    sizes = {image.get("id"): claimed_size(image.get("width"), image.get("height")) for image in truth["images"]}
    annotations = [_complete(annotation, sizes.get(annotation.get("image_id"))) for annotation in truth["annotations"]]
    _warn_of_fractions(annotations)
    return {**truth, "annotations": annotations}


def match_ids(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return entries of a COCO file whose ids are equal if they have the same value, as number or as text."""
    return [entry | {name: key for name in ID_FIELDS if (key := id_value(entry.get(name))) is not None} for entry in entries]


def number_ids(truth: dict[str, Any], rows: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return annotations and detections with whole numbers from 0 for all ids, in the order of the ids: numbers by value, then text."""
    for entries, field in (("images", "image_id"), ("categories", "category_id")):
        keys = {entry.get("id") for entry in truth[entries]}
        if all(isinstance(key, int) and 0 <= key <= MAX_ID for key in keys):
            continue
        numbers = {key: number for number, key in enumerate(sorted(keys, key=_id_order))}
        truth = truth | {entries: [entry | {"id": numbers[entry.get("id")]} for entry in truth[entries]]}
        annotations, rows = (_number(items, field, numbers) for items in (truth["annotations"], rows))
        truth = truth | {"annotations": annotations}
    return truth, rows


def _id_order(key: Any) -> tuple[bool, float, str]:
    return (False, key, "") if isinstance(key, int | float) else (True, 0, str(key))


def _number(items: list[dict[str, Any]], field: str, numbers: dict[Any, int]) -> list[dict[str, Any]]:
    return [item | {field: numbers[item[field]]} if item.get(field) in numbers else item for item in items]


def check_values(truth: dict[str, Any], rows: list[dict[str, Any]], iou_type: IouType) -> None:
    """Check the scores, and the compared values of annotations and detections; missing fields pass.

    Raises:
        DataError: a number is not finite, a box has no four numbers, or a mask cannot be read or does not fit its image.
    """
    sizes = {image["id"]: claimed_size(image.get("width"), image.get("height")) for image in truth["images"]}
    for name, items in (("annotation", truth["annotations"]), ("detection", rows)):
        for index, item in enumerate(items):
            problem = _find_problem(item, RESULT_FIELDS[iou_type], sizes.get(item.get("image_id")))
            if problem:
                raise DataError(f"{name} {index}: {problem}")


def _find_problem(item: dict[str, Any], field: str, image_px: tuple[int, int] | None) -> str | None:
    if not is_number(item.get("score", 0)):
        return f"found score {item['score']!r}, expected a finite number"
    if field not in item:
        return None
    if field == "segmentation":
        try:
            check_segmentation(item[field], image_px)
        except MaskError as error:
            return str(error)
    elif not (_is_box if field == "bbox" else _are_numbers)(item[field]):
        return f"found {field} {item[field]!r}, expected a list of {'4 ' if field == 'bbox' else ''}finite numbers"
    return None


def _complete(annotation: dict[str, Any], image_px: tuple[int, int] | None) -> dict[str, Any]:
    points = _labelled_points(annotation.get("keypoints"))
    box = _find_box(annotation, image_px) or _extent(points)
    sides = (box[2], box[3]) if box and min(box[2:]) > 0 else None
    mask = _encode_mask(annotation.get("segmentation"), image_px)
    mask_px = rle.mask_area(mask.counts, *image_px) if mask and image_px else None
    completed = annotation | {
        "iscrowd": int(is_crowd(annotation.get("iscrowd"))),
        "area": object_area(annotation.get("area"), sides, mask_px),
    }
    if mask and image_px and mask.left_out:
        # COCO's scorers take a piece of four numbers for a box.
        completed["segmentation"] = {"size": list(image_px[::-1]), "counts": mask.counts.decode()}
    if "keypoints" in annotation:
        completed["num_keypoints"] = len(points)
    return completed | {"bbox": box} if box else completed


def _find_box(annotation: dict[str, Any], image_px: tuple[int, int] | None) -> list[float] | None:
    """Return `bbox`, or the extent of the mask where `bbox` has no area, or None."""
    bbox: Any = annotation.get("bbox")
    is_box = _is_box(bbox)
    if is_box and min(bbox[2:]) > 0:
        return bbox
    bounds = segmentation_bounds(annotation.get("segmentation"), image_px)
    if bounds:
        x1, y1, x2, y2 = bounds
        return [x1, y1, x2 - x1, y2 - y1]
    return bbox if is_box else None


def _is_box(values: Any) -> bool:
    return _are_numbers(values) and len(values) == 4


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(map(is_number, values))


def _labelled_points(keypoints: Any) -> list[tuple[float, float]]:
    if not _are_numbers(keypoints):
        return []
    return [(x, y) for x, y, visibility in zip(*(keypoints[start::3] for start in range(3)), strict=False) if visibility > 0]


def _extent(points: list[tuple[float, float]]) -> list[float] | None:
    """Return x, y, width and height of the smallest box around points, or None without points."""
    if not points:
        return None
    (left, right), (top, bottom) = ((min(values), max(values)) for values in zip(*points, strict=True))
    return [left, top, right - left, bottom - top]


def _encode_mask(segmentation: Any, image_px: tuple[int, int] | None) -> EncodedMask | None:
    """Return the run lengths of a mask, or None if there is no usable mask or the size of the image is unknown."""
    if not segmentation or not image_px:
        return None
    try:
        return encode_segmentation(segmentation, *image_px)
    except MaskError:
        return None


def _warn_of_fractions(annotations: list[dict[str, Any]]) -> None:
    boxes: list[Any] = [box for annotation in annotations if _is_box(box := annotation.get("bbox"))]
    edges = [edge for x, y, width, height in boxes for edge in (x + width, y + height)]
    if edges and max(edges) <= 1:
        reason = "all boxes lie within 0 to 1 where COCO has pixels, so that every object counts as small"
        logger.warning("event=looks_like_fractions annotations=%d reason='%s'", len(annotations), reason)

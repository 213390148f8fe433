"""Complete the annotations of a COCO file for pycocotools, which expects fields that many tools leave out or fill with zeros."""

import logging
from typing import Any

from yolor_ray.data import rle
from yolor_ray.data.coco_rules import is_crowd, object_area
from yolor_ray.pack.annotations.masks import EncodedMask, MaskError, encode_segmentation, segmentation_bounds
from yolor_ray.pack.annotations.values import claimed_size, id_value, is_number

logger = logging.getLogger(__name__)

ID_FIELDS = ("id", "image_id", "category_id")


def complete_truth(truth: dict[str, Any]) -> dict[str, Any]:
    """Return COCO annotations in which each annotation has `area`, `iscrowd` and `bbox`, and with keypoints `num_keypoints` too.

    The argument is not changed. An area that is missing or not plausible is replaced by that of the mask, or else of the box. Absent
    boxes become the extent of the mask, or else of the labelled keypoints, because pycocotools reads a box beside keypoints.
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
    """Return annotations and detections with whole numbers for ids that are text, because pycocotools sorts ids."""
    for entries, field in (("images", "image_id"), ("categories", "category_id")):
        keys = {entry.get("id") for entry in truth[entries]}
        if all(isinstance(key, int) for key in keys):
            continue
        numbers = {key: number for number, key in enumerate(sorted(keys, key=lambda key: (isinstance(key, str), str(key))))}
        truth = truth | {entries: [entry | {"id": numbers[entry.get("id")]} for entry in truth[entries]]}
        annotations, rows = (_number(items, field, numbers) for items in (truth["annotations"], rows))
        truth = truth | {"annotations": annotations}
    return truth, rows


def _number(items: list[dict[str, Any]], field: str, numbers: dict[Any, int]) -> list[dict[str, Any]]:
    return [item | {field: numbers[item[field]]} if item.get(field) in numbers else item for item in items]


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
        # pycocotools takes a piece of four numbers for a box.
        completed["segmentation"] = {"size": list(image_px[::-1]), "counts": mask.counts.decode()}
    if "keypoints" in annotation:
        completed["num_keypoints"] = len(points)
    return completed | {"bbox": box} if box else completed


def _find_box(annotation: dict[str, Any], image_px: tuple[int, int] | None) -> list[float] | None:
    """Return `bbox`, or the extent of the mask where `bbox` has no area, or None."""
    bbox: Any = annotation.get("bbox")
    is_box = isinstance(bbox, list) and len(bbox) == 4 and all(map(is_number, bbox))
    if is_box and min(bbox[2:]) > 0:
        return bbox
    bounds = segmentation_bounds(annotation.get("segmentation"), image_px)
    if bounds:
        x1, y1, x2, y2 = bounds
        return [x1, y1, x2 - x1, y2 - y1]
    return bbox if is_box else None


def _labelled_points(keypoints: Any) -> list[tuple[float, float]]:
    if not isinstance(keypoints, list) or not all(map(is_number, keypoints)):
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
    edges = [edge for annotation in annotations if (box := annotation.get("bbox")) for edge in (box[0] + box[2], box[1] + box[3])]
    if edges and max(edges) <= 1:
        reason = "all boxes lie within 0 to 1 where COCO has pixels, so that every object counts as small"
        logger.warning("event=looks_like_fractions annotations=%d reason='%s'", len(annotations), reason)

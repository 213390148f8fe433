"""Rules of COCO that packing and evaluation share: crowd flags, areas of objects, and the number of detections that are compared.

COCO sorts objects into small, medium and large by their areas, and measures the similarity of keypoints relative to the area.
"""

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from yolor_ray.data.shards.records import Objects

logger = logging.getLogger(__name__)

MAX_DETECTIONS: Mapping[str, int] = MappingProxyType({"detect": 100, "segment": 100, "pose": 20})
"""Detections of one class that COCO compares on an image, by task; pycocotools' `maxDets`."""
ROUNDING_PX = 2.0
"""Allowed excess of an annotated area over its box, as px on each side of the box."""
MIN_AREA_PER_PX = 0.25
"""Smallest plausible area, px² per px of the box's longer side: a connected object has about one pixel in each row and column."""
MAX_MASK_RATIO = 2.0
"""Largest plausible ratio between annotated area and area of the mask, either way; tools approximate masks by polygons."""


def is_crowd(value: Any) -> bool:
    """Return True if a value of `iscrowd` marks a region of many objects; a missing or null flag does not."""
    if isinstance(value, str):
        return value.strip().lower() in ("1", "1.0", "true")
    return value in (1, True)


def object_area(annotated: Any, sides: tuple[float, float] | None, mask_px: float | None = None) -> float:
    """Return an object's annotated area, px², or the area of its mask or else of its box where the annotated one is not plausible.

    A plausible area is a positive number that fits the box, and the mask where one is known.

    Args:
        annotated: value of `area` in the annotation; None if there is none.
        sides: width and height of the object's box, px; None if unknown.
        mask_px: area of the object's mask, px²; None if unknown.
    """
    number = isinstance(annotated, int | float) and not isinstance(annotated, bool) and 0 < annotated < np.inf
    if number and _fits_box(annotated, sides) and _fits_mask(annotated, sides, mask_px):
        return float(annotated)
    return float(mask_px or (sides[0] * sides[1] if sides else 0))


def _fits_box(area: float, sides: tuple[float, float] | None) -> bool:
    if sides is None:
        return True
    width, height = sides
    return MIN_AREA_PER_PX * max(width, height) <= area <= (width + ROUNDING_PX) * (height + ROUNDING_PX)


def _fits_mask(area: float, sides: tuple[float, float] | None, mask_px: float | None) -> bool:
    if not mask_px:
        return True
    # The pixels on the outline are inside the mask, but the area of a polygon ends in the middle of them.
    outline_px = max(sides) if sides else ROUNDING_PX
    return area <= MAX_MASK_RATIO * mask_px + outline_px and mask_px <= MAX_MASK_RATIO * area + outline_px


def exceeded_limits(objects: Objects, tasks: tuple[str, ...]) -> list[str]:
    """Return the tasks, out of those of an image, for which a class has more objects than COCO compares detections.

    Even perfect detections cannot reach an AP of 1 there. Crowd regions do not count, nor objects without labelled keypoints or without
    known masks.
    """
    compared = ~objects.crowd
    labels = {"detect": objects.labels[compared]}
    if objects.masks is not None:
        labels["segment"] = objects.labels[compared & [mask is not None for mask in objects.masks]]
    if objects.keypoints is not None:
        labels["pose"] = objects.labels[compared & (objects.keypoints[..., 2] > 0).any(axis=-1)]
    return [task for task in tasks if task in labels and np.bincount(labels[task]).max(initial=0) > MAX_DETECTIONS[task]]


def warn_of_limit(task: str, images: int) -> None:
    """Log a warning if images have more objects of one class than COCO compares detections for a task."""
    if images:
        limit = MAX_DETECTIONS[task]
        reason = f"COCO compares at most {limit} detections of a class on an image, so AP cannot reach 1"
        logger.warning("event=detection_limit task=%s images=%d limit=%d reason='%s'", task, images, limit, reason)

"""Normalize annotations to the image file: pixels of the displayed image, boxes inside the image, masks of its size.

`frame` finds the frame in which the boxes were drawn.
"""

from collections.abc import Sequence

import numpy as np

from yolor_ray.data import rle
from yolor_ray.data.coco_rules import object_area
from yolor_ray.data.images.header import ImageHeader
from yolor_ray.data.shards.records import Objects
from yolor_ray.pack.annotations.faults import Fault
from yolor_ray.pack.annotations.frame import ROUNDING_PX, Frame, find_frame
from yolor_ray.pack.annotations.masks import MaskError, encode_segmentation, orient_mask
from yolor_ray.pack.annotations.schema import AnnotatedImage, AnnotatedObject, scale_fractions

Box = tuple[float, float, float, float]


def normalize_objects(
    image: AnnotatedImage, header: ImageHeader, keypoint_flags: Sequence[Sequence[bool]] = (), has_identities: bool = False
) -> tuple[Objects | None, list[Fault]]:
    """Return the objects of an image in pixels of the displayed image, and the faults that were repaired or left out.

    Args:
        image: the annotations.
        header: header of the image file.
        keypoint_flags: (K, J): the keypoints of the dataset that each of its classes has; empty without keypoints.
        has_identities: the dataset has identities.

    Returns:
        None instead of objects when the whole image cannot be used.
    """
    frame, faults = find_frame(image, header)
    image = scale_fractions(image, header.width, header.height)
    if frame is None:
        return None, faults
    kept: list[tuple[AnnotatedObject, Box]] = []
    for obj in image.objects:
        box, fault = _clip(image, obj, frame, header)
        faults += [fault] if fault else []
        kept += [(obj, box)] if box else []
    objects = [obj for obj, _ in kept]
    boxes = np.array([box for _, box in kept], np.float32).reshape(-1, 4)
    masks, mask_faults = _masks(image, objects, frame)
    normalized = Objects(
        boxes_xyxy=boxes,
        labels=np.array([obj.label for obj in objects], np.int64),
        crowd=np.array([obj.crowd for obj in objects], np.bool_),
        areas=_areas(objects, boxes, masks, header),
        masks=masks,
        keypoints=_keypoints(objects, frame, keypoint_flags) if any(map(len, keypoint_flags)) else None,
        identities=np.array([obj.identity for obj in objects], np.int64) if has_identities else None,
    )
    return normalized, faults + mask_faults


def _clip(image: AnnotatedImage, obj: AnnotatedObject, frame: Frame, header: ImageHeader) -> tuple[Box | None, Fault | None]:
    """Return the box clipped to the displayed image, or None, and a fault if clipping changes the box by more than rounding."""
    corners = _turn(np.array(obj.box).reshape(2, 2), frame)
    (x1, y1), (x2, y2) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    width, height = header.width, header.height
    found = f"found box {x1:.6g}, {y1:.6g}, {x2:.6g}, {y2:.6g} on an image of {width} x {height} px"
    if min(x2, y2) <= 0 or x1 >= width or y1 >= height:
        return None, image.fault("box_outside_image", f"{found}, expected a box on the image; object left out", obj)
    clipped = np.clip(np.array([x1, y1, x2, y2], np.float32), 0, np.array([width, height] * 2, np.float32))
    if clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
        return None, image.fault("zero_area_box", f"{found}, too thin to have an area; object left out", obj)
    box: Box = tuple(clipped.tolist())
    if max(-x1, -y1, x2 - width, y2 - height) > ROUNDING_PX:
        return box, image.fault("box_clipped", f"{found}, expected a box inside the image; clipped to the image", obj)
    return box, None


def _turn(points: np.ndarray, frame: Frame) -> np.ndarray:
    """Map points (…, 2) of the stored image to the displayed image."""
    x, y = points[..., 0], points[..., 1]
    from_right, from_bottom = frame.height - y, frame.width - x
    turned = {5: (y, x), 6: (from_right, x), 7: (from_right, from_bottom), 8: (y, from_bottom)}.get(frame.orientation, (x, y))
    return np.stack(turned, axis=-1)


def _masks(image: AnnotatedImage, objects: list[AnnotatedObject], frame: Frame) -> tuple[tuple[bytes | None, ...] | None, list[Fault]]:
    """Return the mask of each object, None where it is missing or cannot be read; None alone if no object has a mask."""
    if all(obj.mask is None for obj in objects):
        return None, []
    masks: list[bytes | None] = []
    faults = []
    for obj in objects:
        try:
            if obj.mask is None:
                raise MaskError("found no segmentation, expected one as for other objects of the image")
            mask = encode_segmentation(obj.mask, frame.width, frame.height)
            faults += [image.fault("bad_polygon", f"{message}; piece left out of the mask", obj) for message in mask.left_out]
            turned = frame.orientation > 1
            masks.append(orient_mask(mask.counts, frame.width, frame.height, frame.orientation) if turned else mask.counts)
        except MaskError as error:
            code = "missing_mask" if obj.mask is None else "bad_mask"
            faults.append(image.fault(code, f"{error}; the mask is unknown", obj))
            masks.append(None)
    return tuple(masks) if any(masks) else None, faults


def _areas(objects: list[AnnotatedObject], boxes: np.ndarray, masks: tuple[bytes | None, ...] | None, header: ImageHeader) -> np.ndarray:
    """Return the annotated areas (N,), px²; where one is missing or not plausible, the area of the mask or of the box (N, 4)."""
    areas = []
    for index, (obj, (width, height)) in enumerate(zip(objects, (boxes[:, 2:] - boxes[:, :2]).tolist(), strict=True)):
        mask = masks[index] if masks else None
        mask_px = None if mask is None else rle.mask_area(mask, header.width, header.height)
        areas.append(object_area(obj.area, (width, height), mask_px))
    return np.array(areas, np.float32)


def _keypoints(objects: list[AnnotatedObject], frame: Frame, flags: Sequence[Sequence[bool]]) -> np.ndarray:
    # Of an object without keypoints, those of its class are unlabelled, and the others are unknown.
    empty = [tuple(value for flag in row for value in (0.0, 0.0, 0.0 if flag else -1.0)) for row in flags]
    flat = [obj.keypoints or empty[obj.label] for obj in objects]
    keypoints = np.array(flat, np.float32).reshape(-1, len(flags[0]), 3)
    annotated = keypoints[..., 2:] > 0
    keypoints[..., :2] = np.where(annotated, _turn(keypoints[..., :2], frame), keypoints[..., :2])
    return keypoints

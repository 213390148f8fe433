"""Fit annotations to the image as it really is: pixels of the displayed image, inside it, with masks of its size.

The size that an annotation file claims is the frame its boxes were drawn in. Where it is not the displayed size:
- it is the size before EXIF orientation: boxes, masks and keypoints are turned with the image (reported);
- width and height are interchanged and every box lies inside the real image: kept as they are (reported);
- anything else: nobody knows what the boxes mean, and the image is left out (reported).
"""

from typing import NamedTuple

import numpy as np

from yolor_ray.data.images.header import ImageHeader
from yolor_ray.data.shards.records import Objects
from yolor_ray.pack.annotations.faults import Fault
from yolor_ray.pack.annotations.masks import MaskError, mask_area, rectangle, run_lengths, turned
from yolor_ray.pack.annotations.schema import AnnotatedImage, DrawnObject

ROUNDING_PX = 1.0
"""How far a box may leave the image without being reported."""

Box = tuple[float, float, float, float]


class Frame(NamedTuple):
    """The image in which boxes were drawn."""

    width: int
    height: int
    orientation: int
    """EXIF orientation by which to turn what was drawn; 1 leaves it."""


def fit(image: AnnotatedImage, header: ImageHeader, joints: int = 0, identities: bool = False) -> tuple[Objects | None, list[Fault]]:
    """Return the objects of an image in pixels as displayed, and what had to be mended or left out.

    Args:
        image: what was drawn.
        header: what the image file says.
        joints: J, keypoints per object of the data set.
        identities: the data set knows individuals.

    Returns:
        None instead of objects when the image as a whole cannot be used.
    """
    frame, faults = _frame(image, header)
    if frame is None:
        return None, faults
    kept: list[tuple[DrawnObject, Box]] = []
    for drawn in image.objects:
        box, fault = _inside(image, drawn, frame, header)
        faults += [fault] if fault else []
        kept += [(drawn, box)] if box else []
    masks, mask_faults = _masks(image, kept, frame, header)
    boxes = np.array([box for _, box in kept], np.float32).reshape(-1, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    found = [mask_area(mask, header.width, header.height) for mask in masks] if masks is not None else sides.prod(axis=1).tolist()
    areas = [area if drawn.area is None else drawn.area for (drawn, _), area in zip(kept, found, strict=True)]
    objects = Objects(
        boxes_xyxy=boxes,
        labels=np.array([drawn.label for drawn, _ in kept], np.int64),
        crowd=np.array([drawn.crowd for drawn, _ in kept], np.bool_),
        areas=np.array(areas, np.float32),
        masks=masks,
        keypoints=_keypoints([drawn for drawn, _ in kept], frame, joints) if joints else None,
        identities=np.array([drawn.identity for drawn, _ in kept], np.int64) if identities else None,
    )
    return objects, faults + mask_faults


def _frame(image: AnnotatedImage, header: ImageHeader) -> tuple[Frame | None, list[Fault]]:
    displayed = header.width, header.height
    claimed = image.claimed_px or displayed
    if claimed == displayed:
        return Frame(*displayed, 1), []
    found = "found a claim of {} x {} px for an image of {} x {} px".format(*claimed, *displayed)
    if claimed == displayed[::-1] and header.orientation >= 5:
        message = f"{found}, the size before its EXIF orientation {header.orientation}; boxes turned with the image"
        return Frame(*claimed, header.orientation), [image.fault("size_mismatch", message)]
    if claimed == displayed[::-1] and all(drawn.box[2] <= displayed[0] and drawn.box[3] <= displayed[1] for drawn in image.objects):
        return Frame(*displayed, 1), [image.fault("size_mismatch", f"{found}, width and height interchanged; boxes kept as they are")]
    return None, [image.fault("size_mismatch", f"{found}, expected the size of the image; image left out")]


def _inside(image: AnnotatedImage, drawn: DrawnObject, frame: Frame, header: ImageHeader) -> tuple[Box | None, Fault | None]:
    """Return the box clipped to the displayed image, or None, and a fault where that changes it by more than rounding."""
    scale = np.array([frame.width, frame.height] * 2) if image.fractions else np.ones(4)
    corners = _turn((np.array(drawn.box) * scale).reshape(2, 2), frame)
    (x1, y1), (x2, y2) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    width, height = header.width, header.height
    found = f"found box {x1:.6g}, {y1:.6g}, {x2:.6g}, {y2:.6g} on an image of {width} x {height} px"
    if min(x2, y2) <= 0 or x1 >= width or y1 >= height:
        return None, image.fault("box_outside_image", f"{found}, expected it on the image; object left out", drawn)
    clipped = np.clip(np.array([x1, y1, x2, y2], np.float32), 0, np.array([width, height] * 2, np.float32))
    if clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
        return None, image.fault("zero_area_box", f"{found}, too thin to have an area; object left out", drawn)
    box: Box = tuple(clipped.tolist())
    if max(-x1, -y1, x2 - width, y2 - height) > ROUNDING_PX:
        return box, image.fault("box_clipped", f"{found}, expected it inside; clipped to the image", drawn)
    return box, None


def _turn(points: np.ndarray, frame: Frame) -> np.ndarray:
    """Return points (…, 2) of the stored image as displayed."""
    x, y = points[..., 0], points[..., 1]
    right, down = frame.height - y, frame.width - x
    pair = {5: (y, x), 6: (right, x), 7: (right, down), 8: (y, down)}.get(frame.orientation, (x, y))
    return np.stack(pair, axis=-1)


def _masks(
    image: AnnotatedImage, kept: list[tuple[DrawnObject, Box]], frame: Frame, header: ImageHeader
) -> tuple[tuple[bytes, ...] | None, list[Fault]]:
    """Return one mask per object, or None when no object has one; an object without one among others gets its box."""
    if all(drawn.mask is None for drawn, _ in kept):
        return None, []
    masks: list[bytes] = []
    faults = []
    for drawn, box in kept:
        try:
            if drawn.mask is None:
                raise MaskError("found no segmentation, expected one as for other objects of the image")
            mask = run_lengths(drawn.mask, frame.width, frame.height)
            masks.append(turned(mask, frame.width, frame.height, frame.orientation) if frame.orientation > 1 else mask)
        except MaskError as error:
            code = "missing_mask" if drawn.mask is None else "bad_mask"
            faults.append(image.fault(code, f"{error}; its box serves as mask", drawn))
            masks.append(rectangle(box, header.width, header.height))
    return tuple(masks), faults


def _keypoints(drawn: list[DrawnObject], frame: Frame, joints: int) -> np.ndarray:
    flat = [item.keypoints or (0.0,) * (3 * joints) for item in drawn]
    keypoints = np.array(flat, np.float32).reshape(-1, joints, 3)
    seen = keypoints[..., 2:] > 0
    keypoints[..., :2] = np.where(seen, _turn(keypoints[..., :2], frame), keypoints[..., :2])
    return keypoints

"""Draw images and parts of images with their annotations: boxes, masks and keypoints in the colours of their classes."""

from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg

from yolor_ray.data.images.decode import decode
from yolor_ray.data.rle import decode_runs
from yolor_ray.data.shards.records import Objects, Record
from yolor_ray.report.colours import rgb

CROP_PX, IMAGE_PX = 176, 360
"""Long side of the picture of an object and of a whole image."""
CONTEXT = 0.35
"""Surroundings of an object in its picture, as a share of the object's long side, on each side."""
MIN_VIEW_PX = 32
"""Least side of the shown part of an image."""
MASK_OPACITY = 0.4
HIGHLIGHT = (255, 0, 200)
"""Red, green and blue of the boxes that a finding is about."""
JPEG_QUALITY = 82
SMALL_BOX_PX = 36
"""Long side of a box in a picture below which its outline is thin."""
MAX_DRAWN = 400
"""Most objects that are drawn on one picture."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Picture:
    """A picture to draw of one record."""

    member: int
    """Number of the dataset: 0 is the checked one."""
    record: int
    """Number of the record in its dataset."""
    view_xyxy: Box | None = None
    """Boxes around which the picture is cut out, as one box; None shows the whole image."""
    highlights_xyxy: tuple[Box, ...] = ()
    """Boxes to point out."""
    annotated: bool = True
    """Draw the annotations; images that are to be compared are shown without."""


def draw(picture: Picture, record: Record) -> bytes:
    """Draw a picture of a record as JPEG."""
    view = _view(picture, record)
    target_px = IMAGE_PX if picture.view_xyxy is None else CROP_PX
    scale = target_px / max(view[2] - view[0], view[3] - view[1])
    canvas = _cut_out(record, view, scale)
    if picture.annotated:
        _draw_annotations(canvas, record, view, scale)
    for box in picture.highlights_xyxy:
        _draw_box(canvas, (np.array(box) - np.tile(view[:2], 2)) * scale, HIGHLIGHT, 3)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(canvas), quality=JPEG_QUALITY)


def _draw_annotations(canvas: np.ndarray, record: Record, view: np.ndarray, scale: float) -> None:
    objects = record.objects
    visible = (objects.boxes_xyxy[:, 2:] > view[:2]).all(axis=1) & (objects.boxes_xyxy[:, :2] < view[2:]).all(axis=1)
    numbers = np.flatnonzero(visible)[:MAX_DRAWN]
    boxes = (objects.boxes_xyxy[numbers] - np.tile(view[:2], 2)) * scale
    if objects.masks is not None:
        _draw_masks(canvas, record, numbers, boxes, view, scale)
    # Thick lines around small objects would hide the objects.
    is_small = len(boxes) > 0 and np.median((boxes[:, 2:] - boxes[:, :2]).max(axis=1)) < SMALL_BOX_PX
    for number, box in zip(numbers, boxes, strict=True):
        _draw_box(canvas, box, rgb(int(objects.labels[number])), 1 if is_small or objects.crowd[number] else 2)
    _draw_keypoints(canvas, objects, numbers, view[:2], scale)


def _view(picture: Picture, record: Record) -> np.ndarray:
    """Return the shown part of the image, (4,) int64 xyxy: the boxes with their surroundings."""
    if picture.view_xyxy is None:
        return np.array((0, 0, record.width, record.height))
    x1, y1, x2, y2 = picture.view_xyxy
    half = max((0.5 + CONTEXT) * max(x2 - x1, y2 - y1), MIN_VIEW_PX / 2)
    starts = np.floor(((x1 + x2) / 2 - half, (y1 + y2) / 2 - half)).astype(int)
    ends = starts + int(np.ceil(2 * half))
    limits = np.array((record.width, record.height))
    # Moved into the image before it is cut, so that pictures stay square where the image allows it.
    shift = np.maximum(-starts, 0) - np.maximum(ends - limits, 0) * (starts > 0)
    return np.concatenate((np.maximum(starts + shift, 0), np.minimum(ends + shift, limits)))


def _cut_out(record: Record, view: np.ndarray, scale: float) -> np.ndarray:
    """Return the shown part, (h, w, 3) uint8, at a scale; decoded no larger than needed."""
    pixels = decode(record.image, fit_px=max(int(np.ceil(scale * max(record.width, record.height))), 1))
    factors = np.array((pixels.shape[1] / record.width, pixels.shape[0] / record.height) * 2)
    x1, y1, x2, y2 = (view * factors).round().astype(int)
    part = pixels[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)]
    size = tuple(int(max(side, 1)) for side in ((view[2:] - view[:2]) * scale).round())
    shrinks = part.shape[1] > size[0]
    return cv2.resize(part, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def _draw_masks(canvas: np.ndarray, record: Record, numbers: np.ndarray, boxes: np.ndarray, view: np.ndarray, scale: float) -> None:
    """Lay the masks of objects over the picture, each in the colour of its class; `boxes` (N, 4) are pixels of the picture."""
    masks = record.objects.masks or ()
    ends = np.tile(canvas.shape[1::-1], 2)
    edges = np.clip(np.concatenate((np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])), axis=1), 0, ends).astype(int)
    for number, (x1, y1, x2, y2) in zip(numbers, edges, strict=True):
        if (mask := masks[number]) is None:
            continue
        columns = (view[0] + (np.arange(x1, x2) + 0.5) / scale).astype(np.int64).clip(max=record.width - 1)
        rows = (view[1] + (np.arange(y1, y2) + 0.5) / scale).astype(np.int64).clip(max=record.height - 1)
        # Only the shown pixels are looked up among the runs: whole masks of large photos would take seconds.
        runs = np.searchsorted(np.cumsum(decode_runs(mask)), columns * record.height + rows[:, None], side="right")
        inside = runs % 2 == 1
        part = canvas[y1:y2, x1:x2]
        tint = MASK_OPACITY * np.array(rgb(int(record.objects.labels[number])))
        part[inside] = ((1 - MASK_OPACITY) * part[inside] + tint).astype(np.uint8)


def _draw_box(canvas: np.ndarray, box: np.ndarray, colour: tuple[int, int, int], width: int) -> None:
    """Draw a box, with a dark rim unless it is thin; a box without area becomes a cross."""
    x1, y1, x2, y2 = box.round().astype(int).tolist()
    if x2 - x1 < 1 or y2 - y1 < 1:
        cv2.drawMarker(canvas, ((x1 + x2) // 2, (y1 + y2) // 2), colour, cv2.MARKER_TILTED_CROSS, 16, width)
    if width > 1:
        cv2.rectangle(canvas, (x1, y1), (x2, y2), (20, 20, 20), width + 1, cv2.LINE_AA)
    cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, width, cv2.LINE_AA)


def _draw_keypoints(canvas: np.ndarray, objects: Objects, visible: np.ndarray, origin: np.ndarray, scale: float) -> None:
    """Draw the labelled keypoints: filled where visible, a ring where hidden."""
    if objects.keypoints is None:
        return
    for number in visible:
        colour = rgb(int(objects.labels[number]))
        for x, y, visibility in objects.keypoints[number][objects.keypoints[number][:, 2] > 0]:
            center = (round(float(x - origin[0]) * scale), round(float(y - origin[1]) * scale))
            cv2.circle(canvas, center, 4, (20, 20, 20), -1, cv2.LINE_AA)
            cv2.circle(canvas, center, 3, colour if visibility > 1 else (230, 230, 230), -1, cv2.LINE_AA)

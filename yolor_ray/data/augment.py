"""Vary training images: mosaic, affine, colour, flips and mixup, with their boxes, written into reused buffers.

Every draw comes from the generator that is passed in, so a sample depends on its seed alone.
Legend: S side of the square network input in pixels, N boxes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from yolor_ray.config import Augment

FILL = 114
MIN_SIDE_PX, MIN_AREA_SHARE, MAX_ASPECT = 2.0, 0.1, 20.0
"""Boxes that a transform leaves smaller, less visible or thinner than this are no longer learned."""
MIXUP_BETA = 8.0


@dataclass(frozen=True)
class Tile:
    """Hold one decoded image whose longer side is S, and its boxes."""

    image: np.ndarray
    """(h, w, 3) uint8 RGB."""
    boxes_xyxy: np.ndarray
    """(N, 4) float32, pixels of the tile."""
    labels: np.ndarray
    """(N,) int64."""


Labelled = tuple[np.ndarray, np.ndarray]
"""Boxes_xyxy (N, 4) float32 and labels (N,) int64."""


def training_sample(
    index: int, partners: np.ndarray, tile_of: Callable[[int], Tile], rng: np.random.Generator, augment: Augment, out: np.ndarray
) -> Labelled:
    """Write one training image into `out` (S, S, 3) and return its boxes and labels.

    `partners` (M,) are the numbers of the records that may join `index` in mosaics and mixup.
    """

    def compose(first: int, target: np.ndarray) -> Labelled:
        if rng.random() < augment.mosaic:
            others = rng.choice(len(partners), 3)
            return _mosaic([tile_of(i) for i in (first, *partners[others].tolist())], rng, augment, target)
        return _single(tile_of(first), rng, augment, target)

    boxes, labels = compose(index, out)
    if rng.random() < augment.mixup:
        other = np.empty_like(out)
        other_boxes, other_labels = compose(int(partners[rng.integers(len(partners))]), other)
        share = rng.beta(MIXUP_BETA, MIXUP_BETA)
        cv2.addWeighted(out, share, other, 1 - share, 0, dst=out)
        boxes, labels = np.concatenate((boxes, other_boxes)), np.concatenate((labels, other_labels))
    _shift_colours(out, rng, augment)
    return _flip(out, boxes, rng, augment), labels


def _mosaic(tiles: list[Tile], rng: np.random.Generator, augment: Augment, out: np.ndarray) -> Labelled:
    """Lay four tiles around a random centre of a 2S canvas, then cut a varied S window from it."""
    side = out.shape[0]
    canvas = np.full((2 * side, 2 * side, 3), FILL, np.uint8)
    cx, cy = (int(v) for v in rng.uniform(side / 2, 3 * side / 2, 2))
    boxes, labels = [], []
    for place, tile in enumerate(tiles):
        h, w = tile.image.shape[:2]
        x = cx - w if place % 2 == 0 else cx
        y = cy - h if place < 2 else cy
        x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + w, 2 * side), min(y + h, 2 * side)
        canvas[y1:y2, x1:x2] = tile.image[y1 - y : y2 - y, x1 - x : x2 - x]
        boxes.append(tile.boxes_xyxy + np.array((x, y, x, y), np.float32))
        labels.append(tile.labels)
    return _affine(canvas, np.concatenate(boxes), np.concatenate(labels), rng, augment, out)


def _single(tile: Tile, rng: np.random.Generator, augment: Augment, out: np.ndarray) -> Labelled:
    return _affine(tile.image, tile.boxes_xyxy, tile.labels, rng, augment, out)


def _affine(
    image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, rng: np.random.Generator, augment: Augment, out: np.ndarray
) -> Labelled:
    """Zoom and rotate about the centre of `image`, shift, and write the S window around it into `out`."""
    side = out.shape[0]
    zoom = rng.uniform(1 - augment.scale, 1 + augment.scale)
    angle = math.radians(rng.uniform(-augment.degrees, augment.degrees))
    shift = side * (0.5 + rng.uniform(-augment.translate, augment.translate, 2))
    linear = zoom * np.array(((math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))))
    centre = np.array((image.shape[1], image.shape[0])) / 2
    matrix = np.column_stack((linear, shift - linear @ centre))
    # cv2 counts pixel centres, boxes count pixel edges: half a pixel apart.
    at_centres = matrix.copy()
    at_centres[:, 2] += linear @ (0.5, 0.5) - 0.5
    cv2.warpAffine(
        image, at_centres, (side, side), dst=out, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=(FILL,) * 3
    )
    painted = boxes.clip(0, np.tile(image.shape[1::-1], 2))
    clipped = _move_boxes(painted, matrix).clip(0, side)
    keep = _still_there(_move_boxes(boxes, matrix), clipped)
    return clipped[keep], labels[keep]


def _move_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return the upright hulls of transformed boxes."""
    corners = boxes[:, (0, 1, 2, 1, 2, 3, 0, 3)].reshape(-1, 4, 2) @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate((corners.min(axis=1), corners.max(axis=1)), axis=1).astype(np.float32)


def _still_there(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    sides, full = after[:, 2:] - after[:, :2], before[:, 2:] - before[:, :2]
    share = sides.prod(axis=1) / np.maximum(full.prod(axis=1), 1e-9)
    aspect = sides.max(axis=1) / np.maximum(sides.min(axis=1), 1e-9)
    return (sides.min(axis=1) > MIN_SIDE_PX) & (share > MIN_AREA_SHARE) & (aspect < MAX_ASPECT)


def _shift_colours(image: np.ndarray, rng: np.random.Generator, augment: Augment) -> None:
    """Scale hue, saturation and value in place by random factors."""
    gains = 1 + rng.uniform(-1, 1, 3) * (augment.hue, augment.saturation, augment.value)
    if np.allclose(gains, 1):
        return
    levels = np.arange(256, dtype=np.float64)
    table = np.stack(((levels * gains[0]) % 180, (levels * gains[1]).clip(0, 255), (levels * gains[2]).clip(0, 255)), axis=-1)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    cv2.cvtColor(cv2.LUT(hsv, table.astype(np.uint8)[None]), cv2.COLOR_HSV2RGB, dst=image)


def _flip(image: np.ndarray, boxes: np.ndarray, rng: np.random.Generator, augment: Augment) -> np.ndarray:
    """Mirror the image in place and return the mirrored boxes."""
    side = image.shape[0]
    if rng.random() < augment.flip_horizontal:
        cv2.flip(image, 1, dst=image)
        boxes = np.stack((side - boxes[:, 2], boxes[:, 1], side - boxes[:, 0], boxes[:, 3]), axis=1)
    if rng.random() < augment.flip_vertical:
        cv2.flip(image, 0, dst=image)
        boxes = np.stack((boxes[:, 0], side - boxes[:, 3], boxes[:, 2], side - boxes[:, 1]), axis=1)
    return boxes

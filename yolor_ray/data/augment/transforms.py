"""Vary training images: mosaic, affine, colour, flips and mixup, with what is known of them, written into reused buffers.

Every draw comes from the generator that is passed in, so a sample depends on its seed alone.
Legend: S side of the square network input in pixels, J keypoints per object.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np

from yolor_ray.config import AugmentConfig
from yolor_ray.data.augment.geometry import PlacedTile, flip_labels, place_tile, transform_labels
from yolor_ray.data.augment.instance_map import at_centres
from yolor_ray.data.augment.labels import SampleLabels, mixup_labels
from yolor_ray.data.augment.tile import Tile

FILL = 114
MIXUP_BETA = 8.0
NO_JOINTS = np.zeros(0, np.int64)


def training_sample(
    index: int,
    partners: np.ndarray,
    tile_of: Callable[[int], Tile],
    rng: np.random.Generator,
    augment: AugmentConfig,
    out: np.ndarray,
    mirror: np.ndarray = NO_JOINTS,
) -> SampleLabels:
    """Write one training image into `out` (S, S, 3) and return what is known of it.

    `partners` (M,) are the numbers of the records that may join `index` in mosaics and mixup; `mirror` (J,) tells which keypoint
    takes the place of each in a mirror.
    """

    def compose(first: int, target: np.ndarray) -> SampleLabels:
        if rng.random() < augment.mosaic:
            others = rng.choice(len(partners), 3)
            return _mosaic([tile_of(i) for i in (first, *partners[others].tolist())], rng, augment, target)
        return _single(tile_of(first), rng, augment, target)

    known = compose(index, out)
    if rng.random() < augment.mixup:
        other = np.empty_like(out)
        other_known = compose(int(partners[rng.integers(len(partners))]), other)
        share = rng.beta(MIXUP_BETA, MIXUP_BETA)
        cv2.addWeighted(out, share, other, 1 - share, 0, dst=out)
        known = mixup_labels(known, other_known)
    _shift_colours(out, rng, augment)
    return _flip(out, known, rng, augment, mirror)


def _mosaic(tiles: list[Tile], rng: np.random.Generator, augment: AugmentConfig, out: np.ndarray) -> SampleLabels:
    """Lay four tiles around a random centre of a 2S canvas, then cut a varied S window from it."""
    side = out.shape[0]
    canvas = np.full((2 * side, 2 * side, 3), FILL, np.uint8)
    cx, cy = (int(v) for v in rng.uniform(side / 2, 3 * side / 2, 2))
    parts = []
    for place, tile in enumerate(tiles):
        h, w = tile.image.shape[:2]
        part = place_tile(tile, cx - w if place % 2 == 0 else cx, cy - h if place < 2 else cy, 2 * side, 2 * side)
        canvas[part.top : part.bottom, part.left : part.right] = part.cut(tile.image)
        parts.append(part)
    return _affine(canvas, parts, rng, augment, out)


def _single(tile: Tile, rng: np.random.Generator, augment: AugmentConfig, out: np.ndarray) -> SampleLabels:
    height, width = tile.image.shape[:2]
    return _affine(tile.image, [place_tile(tile, 0, 0, width, height)], rng, augment, out)


def _affine(canvas: np.ndarray, parts: list[PlacedTile], rng: np.random.Generator, augment: AugmentConfig, out: np.ndarray) -> SampleLabels:
    """Zoom and rotate about the centre of `canvas`, shift, and write the S window around it into `out`."""
    side = out.shape[0]
    zoom = rng.uniform(1 - augment.scale, 1 + augment.scale)
    angle = math.radians(rng.uniform(-augment.degrees, augment.degrees))
    shift = side * (0.5 + rng.uniform(-augment.translate, augment.translate, 2))
    linear = zoom * np.array(((math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))))
    size = canvas.shape[1], canvas.shape[0]
    matrix = np.column_stack((linear, shift - linear @ (np.array(size) / 2)))
    window, grey = at_centres(matrix), (FILL,) * 3
    cv2.warpAffine(canvas, window, (side, side), dst=out, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=grey)
    return transform_labels(parts, size, matrix, side)


def _shift_colours(image: np.ndarray, rng: np.random.Generator, augment: AugmentConfig) -> None:
    """Scale hue, saturation and value in place by random factors."""
    gains = 1 + rng.uniform(-1, 1, 3) * (augment.hue, augment.saturation, augment.value)
    if np.allclose(gains, 1):
        return
    levels = np.arange(256, dtype=np.float64)
    table = np.stack(((levels * gains[0]) % 180, (levels * gains[1]).clip(0, 255), (levels * gains[2]).clip(0, 255)), axis=-1)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    cv2.cvtColor(cv2.LUT(hsv, table.astype(np.uint8)[None]), cv2.COLOR_HSV2RGB, dst=image)


def _flip(image: np.ndarray, known: SampleLabels, rng: np.random.Generator, augment: AugmentConfig, mirror: np.ndarray) -> SampleLabels:
    """Mirror the image in place and return what is known of the mirrored one."""
    across, down = bool(rng.random() < augment.flip_horizontal), bool(rng.random() < augment.flip_vertical)
    if across:
        cv2.flip(image, 1, dst=image)
    if down:
        cv2.flip(image, 0, dst=image)
    return flip_labels(known, image.shape[0], across=across, down=down, joints=mirror)

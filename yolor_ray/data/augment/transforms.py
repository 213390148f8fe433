"""Augment training images and their annotations: mosaic, affine, colour, flips and mixup, written into reused buffers.

Every random draw comes from the generator passed in, so a sample depends on its seed alone.
Legend: S side of the square network input in pixels, J keypoints per object, W records of a window.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np

from yolor_ray.config import AugmentConfig
from yolor_ray.data.augment.geometry import PlacedTile, flip_labels, place_tile, transform_labels
from yolor_ray.data.augment.instance_map import to_pixel_centres
from yolor_ray.data.augment.labels import SampleLabels, mixup_labels
from yolor_ray.data.augment.tile import Tile
from yolor_ray.data.images.decode import FILL

MIXUP_BETA = 8.0
NO_KEYPOINTS = np.zeros(0, np.int64)


def training_sample(
    index: int,
    partners: np.ndarray,
    tile_of: Callable[[int], Tile],
    rng: np.random.Generator,
    augment: AugmentConfig,
    out: np.ndarray,
    keypoint_order: np.ndarray = NO_KEYPOINTS,
) -> SampleLabels:
    """Write one augmented training image into `out` (S, S, 3) and return its annotations.

    Args:
        index: number of the record.
        partners: (W,) numbers of the records that may join `index` in mosaics and mixup.
        tile_of: returns the tile of a record number.
        rng: source of every random draw.
        augment: strengths and probabilities.
        out: (S, S, 3) uint8, overwritten.
        keypoint_order: (J,) keypoints of a flipped object, as `flipped_keypoint_order` returns them.
    """

    def compose(first: int, target: np.ndarray) -> SampleLabels:
        if rng.random() < augment.mosaic:
            chosen = rng.choice(len(partners), 3)
            return _mosaic([tile_of(i) for i in (first, *partners[chosen].tolist())], rng, augment, target)
        tile = tile_of(first)
        height, width = tile.image.shape[:2]
        canvas = cv2.cvtColor(tile.image, cv2.COLOR_RGB2RGBA)
        return _random_affine(canvas, [place_tile(tile, 0, 0, width, height)], rng, augment, target)

    annotations = compose(index, out)
    if rng.random() < augment.mixup:
        second_image = np.empty_like(out)
        second_annotations = compose(int(partners[rng.integers(len(partners))]), second_image)
        share = rng.beta(MIXUP_BETA, MIXUP_BETA)
        cv2.addWeighted(out, share, second_image, 1 - share, 0, dst=out)
        annotations = mixup_labels(annotations, second_annotations)
    _jitter_colours(out, rng, augment)
    return _random_flip(out, annotations, rng, augment, keypoint_order)


def _mosaic(tiles: list[Tile], rng: np.random.Generator, augment: AugmentConfig, out: np.ndarray) -> SampleLabels:
    """Place four tiles around a random centre of a 2S canvas, then write a random S window of the canvas into `out`."""
    side = out.shape[0]
    canvas = np.empty((2 * side, 2 * side, 4), np.uint8)
    # `np.full` converts each value from int64.
    canvas.fill(FILL)
    cx, cy = (int(v) for v in rng.uniform(side / 2, 3 * side / 2, 2))
    placed_tiles = []
    for quadrant, tile in enumerate(tiles):
        h, w = tile.image.shape[:2]
        placed = place_tile(tile, cx - w if quadrant % 2 == 0 else cx, cy - h if quadrant < 2 else cy, 2 * side, 2 * side)
        inside = canvas[placed.top : placed.bottom, placed.left : placed.right]
        cv2.cvtColor(placed.cut(tile.image), cv2.COLOR_RGB2RGBA, dst=inside)
        placed_tiles.append(placed)
    return _random_affine(canvas, placed_tiles, rng, augment, out)


def _random_affine(
    canvas: np.ndarray, placed_tiles: list[PlacedTile], rng: np.random.Generator, augment: AugmentConfig, out: np.ndarray
) -> SampleLabels:
    """Zoom and rotate about the centre of `canvas` (h, w, 4), shift, and write the S window around the centre into `out`.

    OpenCV warps four channels in less time than three, to equal values. The fourth one is of no account.
    """
    side = out.shape[0]
    zoom = rng.uniform(1 - augment.scale, 1 + augment.scale)
    angle = math.radians(rng.uniform(-augment.degrees, augment.degrees))
    shift = side * (0.5 + rng.uniform(-augment.translate, augment.translate, 2))
    linear = zoom * np.array(((math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))))
    canvas_px = canvas.shape[1], canvas.shape[0]
    matrix = np.column_stack((linear, shift - linear @ (np.array(canvas_px) / 2)))
    centred, grey = to_pixel_centres(matrix), (FILL,) * 4
    warped = cv2.warpAffine(canvas, centred, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=grey)
    cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB, dst=out)
    return transform_labels(placed_tiles, canvas_px, matrix, side)


def _jitter_colours(image: np.ndarray, rng: np.random.Generator, augment: AugmentConfig) -> None:
    """Scale hue, saturation and value in place by random factors."""
    gains = 1 + rng.uniform(-1, 1, 3) * (augment.hue, augment.saturation, augment.value)
    if np.allclose(gains, 1):
        return
    levels = np.arange(256, dtype=np.float64)
    table = np.stack(((levels * gains[0]) % 180, (levels * gains[1]).clip(0, 255), (levels * gains[2]).clip(0, 255)), axis=-1)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    cv2.cvtColor(cv2.LUT(hsv, table.astype(np.uint8)[None]), cv2.COLOR_HSV2RGB, dst=image)


def _random_flip(
    image: np.ndarray, annotations: SampleLabels, rng: np.random.Generator, augment: AugmentConfig, keypoint_order: np.ndarray
) -> SampleLabels:
    """Flip the image in place at random and return its flipped annotations."""
    horizontal, vertical = bool(rng.random() < augment.flip_horizontal), bool(rng.random() < augment.flip_vertical)
    if horizontal:
        cv2.flip(image, 1, dst=image)
    if vertical:
        cv2.flip(image, 0, dst=image)
    return flip_labels(annotations, image.shape[0], horizontal=horizontal, vertical=vertical, keypoint_order=keypoint_order)

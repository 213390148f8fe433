"""Polygons of masks, compared with pycocotools, OpenCV's filling and counts of pixels."""

import cv2
import numpy as np
import pytest
from pycocotools import mask as run_length

from yolor_ray.inference.polygons import mask_polygons


def compress(mask):
    return run_length.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]


def fill(polygons, shape, scale=8):
    """Return the pixels whose centres lie in a polygon, (H, W) bool; drawn at 8 times the size, where corners lie on whole pixels."""
    drawn = np.zeros((shape[0] * scale, shape[1] * scale), np.uint8)
    for polygon in polygons:
        cv2.fillPoly(drawn, [np.round(np.reshape(polygon, (-1, 1, 2)) * scale).astype(np.int32)], 1)
    return drawn[scale // 2 :: scale, scale // 2 :: scale] > 0


def disc(shape, x, y, radius):
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    return (columns - x) ** 2 + (rows - y) ** 2 < radius**2


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 1.0])
def test_the_area_is_the_number_of_pixels_and_every_outline_has_three_corners(share):
    generator = np.random.default_rng(8)
    for size in ((1, 1), (1, 30), (30, 1), (25, 40)):
        mask = generator.random(size) < share
        area, polygons = mask_polygons(compress(mask), size[0])
        assert area == mask.sum()
        assert bool(polygons) == bool(area) and all(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in polygons)
        corners = np.array([number for polygon in polygons for number in polygon]).reshape(-1, 2)
        assert (corners * 2 % 1 == 0).all() and (corners >= 0).all() and (corners <= size[::-1]).all()


@pytest.mark.parametrize(("x", "y", "radius"), [(50, 40, 30), (0, 0, 25), (99.5, 40, 60), (50, 40, 200), (33.2, 20.7, 2)])
def test_a_filled_outline_is_the_mask_except_at_its_border(x, y, radius):
    mask = disc((80, 100), x, y, radius)
    [polygon] = mask_polygons(compress(mask), 80)[1]
    refilled = fill([polygon], mask.shape)
    border = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8), borderValue=0) > 0
    assert (refilled == mask)[~border].all()
    assert (refilled & mask).sum() / (refilled | mask).sum() > 0.98
    assert len(polygon) // 2 <= max(8, border.sum() / 4)


def test_each_connected_part_has_an_outline_and_holes_are_filled():
    ring = disc((60, 90), 25, 30, 20) & ~disc((60, 90), 25, 30, 8)
    dot, line = np.zeros((2, 60, 90), bool)
    dot[5, 80], line[10:50, 70] = True, True
    area, polygons = mask_polygons(compress(ring | dot | line), 60)
    assert area == ring.sum() + 1 + 40
    assert len(polygons) == 3
    drawn = fill(polygons, ring.shape)
    assert drawn[30, 25] and drawn[5, 80] and drawn[11:49, 70].all()
    assert not drawn[:, 50:69].any() and not drawn[:, 72:79].any()

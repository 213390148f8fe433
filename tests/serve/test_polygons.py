"""Outlines of masks against pycocotools, OpenCV's own filling and counting."""

import cv2
import numpy as np
import pytest
from pycocotools import mask as run_length

from yolor_ray.data.augment.instance_map import run_lengths
from yolor_ray.serve.polygons import outlines


def compressed(mask):
    return run_length.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]


def filled(polygons, shape, finer=8):
    """Return which pixels' centres lie in any of the polygons; drawn 8 times as large, where corners lie on whole pixels."""
    drawn = np.zeros((shape[0] * finer, shape[1] * finer), np.uint8)
    for polygon in polygons:
        cv2.fillPoly(drawn, [np.round(np.reshape(polygon, (-1, 1, 2)) * finer).astype(np.int32)], 1)
    return drawn[finer // 2 :: finer, finer // 2 :: finer] > 0


def disc(shape, x, y, radius):
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    return (columns - x) ** 2 + (rows - y) ** 2 < radius**2


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.7, 1.0])
def test_run_lengths_are_those_that_pycocotools_wrote(share):
    generator = np.random.default_rng(7)
    for size in ((1, 1), (1, 9), (9, 1), (13, 8), (400, 300)):
        mask = generator.random(size) < share
        found = run_lengths([compressed(mask)])[0]
        np.testing.assert_array_equal(np.repeat(np.arange(len(found)) % 2, found), mask.T.ravel())


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 1.0])
def test_areas_are_counts_of_pixels_and_every_outline_has_three_corners_or_more(share):
    generator = np.random.default_rng(8)
    for size in ((1, 1), (1, 30), (30, 1), (25, 40)):
        mask = generator.random(size) < share
        area, polygons = outlines(compressed(mask), size[0])
        assert area == mask.sum()
        assert bool(polygons) == bool(area) and all(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in polygons)
        corners = np.array([number for polygon in polygons for number in polygon]).reshape(-1, 2)
        assert (corners * 2 % 1 == 0).all() and (corners >= 0).all() and (corners <= size[::-1]).all()


@pytest.mark.parametrize(("x", "y", "radius"), [(50, 40, 30), (0, 0, 25), (99.5, 40, 60), (50, 40, 200), (33.2, 20.7, 2)])
def test_a_filled_outline_covers_the_mask_but_for_pixels_at_its_border(x, y, radius):
    mask = disc((80, 100), x, y, radius)
    [polygon] = outlines(compressed(mask), 80)[1]
    again = filled([polygon], mask.shape)
    border = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8), borderValue=0) > 0
    assert (again == mask)[~border].all()
    assert (again & mask).sum() / (again | mask).sum() > 0.98
    assert len(polygon) // 2 <= max(8, border.sum() / 4)


def test_each_part_has_an_outline_of_its_own_and_holes_are_filled():
    ring = disc((60, 90), 25, 30, 20) & ~disc((60, 90), 25, 30, 8)
    dot, line = np.zeros((2, 60, 90), bool)
    dot[5, 80], line[10:50, 70] = True, True
    area, polygons = outlines(compressed(ring | dot | line), 60)
    assert area == ring.sum() + 1 + 40
    assert len(polygons) == 3
    whole = filled(polygons, ring.shape)
    assert whole[30, 25] and whole[5, 80] and whole[11:49, 70].all()
    assert not whole[:, 50:69].any() and not whole[:, 72:79].any()

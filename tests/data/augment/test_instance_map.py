"""Instance maps, compared with masks that pycocotools decodes one at a time."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from yolor_ray.data.augment.instance_map import instance_map, renumber_instances, visible_objects, warp_instances
from yolor_ray.data.rle import encode_mask

# pycocotools itself is older than NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def painted(masks: list[bytes], width: int, height: int) -> np.ndarray:
    """Paint masks over each other as whole images, the largest first."""
    decoded = [coco_mask.decode({"size": [height, width], "counts": mask}) for mask in masks]
    canvas = np.zeros((height, width), np.uint16)
    for number in sorted(range(len(decoded)), key=lambda n: -int(decoded[n].sum())):
        canvas[decoded[number] > 0] = number + 1
    return canvas


def blobs(seed: int, count: int, width: int, height: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    circles = rng.uniform(0, 1, (count, 3)) * (width, height, max(width, height) / 2)
    return [(columns - x) ** 2 + (rows - y) ** 2 < radius**2 for x, y, radius in circles]


@pytest.mark.parametrize(("width", "height", "count"), [(37, 53, 30), (300, 211, 8), (1, 1, 2), (5, 1, 3), (1, 7, 3)])
def test_a_map_shows_every_mask_smaller_ones_in_front(width, height, count):
    for seed in range(3):
        masks = [encode_mask(blob) for blob in blobs(seed, count, width, height)]
        instances = instance_map(masks, width, height, (width, height))
        assert instances.dtype == np.uint16
        assert np.array_equal(instances, painted(masks, width, height))


def test_masks_of_single_pixels_of_no_pixel_and_of_all_pixels_are_read():
    rng = np.random.default_rng(0)
    noise = [rng.random((40, 30)) < share for share in (0.5, 0.01, 0.99)]
    masks = [encode_mask(mask) for mask in (*noise, np.zeros((40, 30)), np.ones((40, 30)))]
    instances = instance_map(masks, 30, 40, (30, 40))
    assert np.array_equal(instances, painted(masks, 30, 40))
    assert visible_objects(instances, 5).tolist() == [True, True, True, False, True]


def test_runs_of_millions_of_pixels_are_read():
    masks = [coco_mask.frPyObjects({"size": [2000, 1500], "counts": [2_000_000, 900_000, 100_000]}, 2000, 1500)["counts"]]
    instances = instance_map(masks, 1500, 2000, (1500, 2000))
    assert np.array_equal(np.flatnonzero(instances.T), np.arange(2_000_000, 2_900_000))


def test_a_map_of_no_masks_is_empty():
    assert not instance_map([], 4, 3, (8, 6)).any()
    assert not instance_map([b"", b""], 4, 3, (8, 6)).any()


@pytest.mark.parametrize("size", [(60, 40), (30, 20), (90, 60), (47, 31)])
def test_a_map_of_another_size_samples_the_pixel_centres(size):
    width, height = 60, 40
    masks = [encode_mask(blob) for blob in blobs(1, 12, width, height)]
    full_size, instances = painted(masks, width, height), instance_map(masks, width, height, size)
    assert instances.shape == size[::-1]
    columns, rows = ((np.arange(n) + 0.5) * full / n for n, full in zip(size, (width, height), strict=True))
    # A centre on the edge between two pixels may take the value of either.
    nudges = [(x, y) for x in (-1e-6, 1e-6) for y in (-1e-6, 1e-6)]
    expected = [full_size[np.ix_((rows + y).astype(int), (columns + x).astype(int))] for x, y in nudges]
    assert np.logical_or.reduce([instances == values for values in expected]).all()


def test_a_pixel_shows_the_object_at_its_centre():
    instances = np.arange(1, 17, dtype=np.uint16).reshape(4, 4)
    still, shifted = (np.array(((1.0, 0, x), (0, 1, y))) for x, y in ((0, 0), (1, -2)))
    assert np.array_equal(warp_instances(instances, still, 4), instances)
    assert np.array_equal(warp_instances(instances, shifted, 4), [[0, 9, 10, 11], [0, 13, 14, 15], [0] * 4, [0] * 4])


@pytest.mark.parametrize(("border", "expected"), [(0, 2), (1, 1), (2, 1)])
def test_shrinking_samples_the_centre_of_each_new_pixel(border, expected):
    # Scaled by a half and shifted by an eighth, the centre of the new pixel, 0.5, comes from 0.75: from the first pixel.
    halves = np.full((2, 2), 2, np.uint16)
    halves[:, :border] = 1
    assert warp_instances(halves, np.array(((0.5, 0, 0.125), (0, 0.5, 0.125))), 1).item() == expected


def test_removed_objects_leave_the_map_and_the_others_are_renumbered():
    instances = np.array([[0, 1, 2], [3, 4, 4]])
    renumbered = renumber_instances(instances, np.array([False, True, False, True]))
    assert np.array_equal(renumbered, [[0, 0, 1], [0, 2, 2]])
    assert visible_objects(renumbered, 3).tolist() == [True, True, False]

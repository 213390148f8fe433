"""Image labels of a mosaic follow from the visible share of each tile."""

import math

import numpy as np
import pytest

from yolor_ray.data.augment.labels import SampleLabels, mixup_labels
from yolor_ray.data.augment.visibility import combine_image_labels, visible_share

NAN = math.nan


def quad(x1: float, y1: float, x2: float, y2: float) -> np.ndarray:
    return np.array(((x1, y1), (x2, y1), (x2, y2), (x1, y2)), float)


@pytest.mark.parametrize(
    ("corners", "share"),
    [
        (quad(0, 0, 10, 10), 1),
        (quad(2, 3, 7, 9), 1),
        (quad(-10, 0, 10, 10), 0.5),
        (quad(5, -5, 15, 5), 0.25),
        (quad(-5, -5, 15, 15), 0.25),
        (quad(10, 0, 20, 10), 0),
        (quad(-9, -9, -1, -1), 0),
        (quad(12, 12, 15, 40), 0),
    ],
)
def test_the_visible_share_of_an_upright_tile_is_exact(corners, share):
    area = np.prod(corners[2] - corners[0])
    assert visible_share(corners.tolist(), area, 10) == pytest.approx(share)
    assert visible_share(corners[::-1].tolist(), area, 10) == pytest.approx(share)


def test_the_visible_share_of_a_rotated_tile_agrees_with_sampled_points():
    rng = np.random.default_rng(0)
    grid = (np.stack(np.meshgrid(*[(np.arange(200) + 0.5) / 200] * 2), axis=-1)).reshape(-1, 2)
    for _ in range(40):
        angle, sides, shift = rng.uniform(0, 7), rng.uniform(2, 30, 2), rng.uniform(-15, 25, 2)
        turn = np.array(((math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle))))
        points = grid * sides @ turn.T + shift
        inside = ((points >= 0) & (points <= 10)).all(axis=1).mean()
        assert visible_share((quad(0, 0, *sides) @ turn.T + shift).tolist(), sides.prod(), 10) == pytest.approx(inside, abs=0.01)


@pytest.mark.parametrize(
    ("labels", "shares", "expected"),
    [
        ([1], [1], 1),
        ([0], [1], 0),
        ([NAN], [1], NAN),
        ([1], [0.25], 1),
        ([1], [0.24], NAN),
        ([1], [0], 0),
        ([0, 1], [0.5, 0.5], 1),
        ([0, 1], [1, 0.1], NAN),
        ([1, 1], [1, 0.1], 1),
        ([NAN, 1], [1, 1], 1),
        ([NAN, 0], [0.01, 1], NAN),
        ([NAN, 0], [0, 1], 0),
        ([0, 0, 0, 0], [1, 0.1, 0, 0.5], 0),
    ],
)
def test_image_labels_of_a_mosaic(labels, shares, expected):
    image_labels = combine_image_labels(np.array(labels, np.float32)[:, None], np.array(shares))
    assert image_labels.dtype == np.float32
    assert np.array_equal(image_labels, [expected], equal_nan=True)


def sample_labels(**changes) -> SampleLabels:
    return SampleLabels(np.zeros((2, 4), np.float32), np.arange(2), **changes)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(0, 0, 0), (0, 1, 1), (1, 1, 1), (1, NAN, 1), (NAN, 1, 1), (0, NAN, NAN), (NAN, NAN, NAN)],
)
def test_image_labels_of_a_mixup(first, second, expected):
    both = [sample_labels(image_labels=np.array([label], np.float32)) for label in (first, second)]
    image_labels = mixup_labels(*both).image_labels
    assert image_labels is not None
    assert image_labels.dtype == np.float32
    assert np.array_equal(image_labels, [expected], equal_nan=True)


def test_in_a_mixup_only_the_first_image_keeps_its_masks():
    first = sample_labels(has_mask=np.array([True, True]), instances=np.array([[1, 2]]), identities=np.arange(2))
    second = sample_labels(has_mask=np.array([False, True]), instances=np.array([[2, 0]]), identities=np.arange(2))
    annotations = mixup_labels(first, second)
    assert annotations.has_mask.tolist() == [True, True, False, False]
    assert annotations.instances.tolist() == [[1, 2]]
    assert annotations.identities.tolist() == [0, 1, 0, 1]
    assert annotations.keypoints is None


def test_a_class_is_known_in_a_mixup_if_it_is_known_in_both_images():
    first, second = (sample_labels(classes_known=np.array(known)) for known in ([True, True, False], [True, False, True]))
    assert mixup_labels(first, second).classes_known.tolist() == [True, False, False]
    assert mixup_labels(sample_labels(), sample_labels()).classes_known is None


@pytest.mark.parametrize(("first", "second"), [(True, True), (True, False), (False, True)])
def test_boxes_of_a_mixup_are_known_only_if_those_of_both_images_are(first, second):
    assert mixup_labels(sample_labels(boxes_known=first), sample_labels(boxes_known=second)).boxes_known == (first and second)

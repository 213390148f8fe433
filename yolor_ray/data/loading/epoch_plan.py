"""Plan an epoch: a seeded order of windows and records, cut into equal shares and batches.

A window holds records of one data set alone, and the members of a union take turns in proportion to their sizes.
The order depends on seed and epoch alone, and so does the number of steps and how many records each of them takes over
all workers. What is left after a checkpoint is cut by the same rule, so the same number of workers goes on exactly where
it stopped, and another number takes each remaining record once, in as many steps.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from yolor_ray.data.shards.dataset import RowGroup


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
    weight: float
    """This worker's share of the records of all workers in this step, times the number of workers: what its mean loss counts
    among theirs. 0 for a worker without a record, which repeats one so as to keep step."""


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


def steps_of(windows: list[Window], seen: np.ndarray, *, rank: int, world_size: int, batch: int) -> list[Step]:
    """Return one worker's steps over the records that are not yet `seen` ((images,) bool).

    A step takes at most `batch` records over all workers, every step as many to within one. Each worker has a stretch of
    the order of its own, so that it reads few windows, and every step takes as much of each stretch, to within one record.
    """
    order, window_of = _dealt(windows)
    left = np.flatnonzero(~seen[order])
    if len(left) == 0:
        return []
    sizes = np.array([len(part) for part in np.array_split(left, math.ceil(len(left) / batch))])
    # Places are counted from the epoch's first, so that a resume in its middle gives every worker what it had before.
    places = len(order) - len(left) + np.cumsum([0, *sizes])
    # Workers take turns: how many of the first so many places are each one's, (steps + 1, world_size).
    turns = (places[:, None] + world_size - 1 - np.arange(world_size)) // world_size
    taken = turns - turns[0]
    ends = taken[-1][:rank].sum() + taken[:, rank]
    parts = [left[start:end] for start, end in itertools.pairwise(ends)]
    # The epoch's last record, seen or not, as that is the same one after a resume.
    owns = [part if len(part) else np.array([len(order) - 1]) for part in parts]
    return [
        Step(order[own], window_of[own], float(len(part) * world_size / size)) for own, part, size in zip(owns, parts, sizes, strict=True)
    ]


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

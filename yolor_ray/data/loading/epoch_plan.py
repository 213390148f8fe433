"""Plan an epoch: a seeded order of windows and records, cut into equal steps and worker shares.

A window holds records of one dataset alone, and the members of a union take turns in proportion to their sizes.
The order depends on seed and epoch alone; so do the number of steps and the records per step over all workers. The records that
remain after a checkpoint are planned by the same rule. The same number of workers therefore continues exactly where it stopped,
and another number of workers takes each remaining record once, in as many steps.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from yolor_ray.data.shards.dataset import RowGroup


@dataclass(frozen=True)
class Window:
    """Row groups whose records are shuffled together and may join each other in mosaics."""

    groups: tuple[RowGroup, ...]
    order: np.ndarray
    """Numbers of all records of the window, shuffled."""


@dataclass(frozen=True)
class Step:
    """Records of one worker's batch, and the windows that these records and their mosaic partners come from."""

    records: np.ndarray
    """Record numbers."""
    windows: np.ndarray
    """For each record, the index of its window in the epoch."""
    weight: float
    """Loss weight: world_size x (own records / all records). 0 where the worker repeats a record to keep collectives aligned."""


def epoch_windows(groups: Sequence[RowGroup], *, records_per_window: int, seed: int, epoch: int) -> list[Window]:
    """Return the windows of an epoch: row groups in a seeded order, gathered until a window holds `records_per_window`.

    One window of each member of a union is open at a time. With m members, each window therefore holds 1 / m of that number.
    """
    rng = np.random.default_rng((seed, epoch))
    windows: list[Window] = []
    gathered: dict[int, list[RowGroup]] = {group.member: [] for group in groups}
    for index in rng.permutation(len(groups)):
        group = groups[index]
        gathered[group.member].append(group)
        if sum(g.rows for g in gathered[group.member]) * len(gathered) >= records_per_window:
            windows.append(_window(gathered[group.member], rng))
            gathered[group.member] = []
    return windows + [_window(remainder, rng) for remainder in gathered.values() if remainder]


def _window(groups: list[RowGroup], rng: np.random.Generator) -> Window:
    numbers = np.concatenate([np.arange(g.first_record, g.first_record + g.rows) for g in groups])
    return Window(tuple(groups), rng.permutation(numbers))


def plan_steps(windows: list[Window], seen: np.ndarray, *, rank: int, world_size: int, batch: int) -> list[Step]:
    """Plan one worker's steps over the records that are not yet `seen`, (images,) bool.

    Steps hold at most `batch` records over all workers, with sizes that differ by at most one. Each worker owns a contiguous slice
    of the order, so that it reads few windows. Every step takes equally from each slice, to within one record.
    """
    order, window_of = _interleave_members(windows)
    remaining = np.flatnonzero(~seen[order])
    if len(remaining) == 0:
        return []
    sizes = np.array([len(step) for step in np.array_split(remaining, math.ceil(len(remaining) / batch))])
    # Counted from the start of the epoch, so that a resume in its middle gives every worker the same records as before.
    boundaries = len(order) - len(remaining) + np.cumsum([0, *sizes])
    # Workers take turns: the records of each worker among the first `boundaries` of the epoch, (steps + 1, world_size).
    totals = (boundaries[:, None] + world_size - 1 - np.arange(world_size)) // world_size
    taken = totals - totals[0]
    ends = taken[-1][:rank].sum() + taken[:, rank]
    shares = [remaining[start:end] for start, end in itertools.pairwise(ends)]
    # A worker without a record repeats the epoch's last record, seen or not, because that record is the same after a resume.
    indices = [share if len(share) else np.array([len(order) - 1]) for share in shares]
    return [
        Step(order[index], window_of[index], float(len(share) * world_size / size))
        for index, share, size in zip(indices, shares, sizes, strict=True)
    ]


def _interleave_members(windows: list[Window]) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of all records in the order of the epoch, and the index of each record's window.

    The records of each member are spread evenly over the epoch, so that every batch mixes datasets in the epoch's proportions.
    """
    sizes = [len(w.order) for w in windows]
    member_of = np.repeat([w.groups[0].member for w in windows], sizes)
    due = np.empty(len(member_of))
    for member in np.unique(member_of):
        records = np.flatnonzero(member_of == member)
        due[records] = (np.arange(len(records)) + 0.5) / len(records)
    turn = np.argsort(due, kind="stable")
    return np.concatenate([w.order for w in windows])[turn], np.repeat(np.arange(len(windows)), sizes)[turn]

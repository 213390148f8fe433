"""The plan of an epoch, computed whole and record by record: the reference of `yolor_ray/data/loading/epoch_plan.py`.

A window holds records of one dataset alone, and the members of a union take turns in proportion to their shares of the epoch.
The order depends on seed and epoch alone; so do the number of steps and the records per step over all workers. The records that
remain after a checkpoint are planned by the same rule. The same number of workers therefore continues exactly where it stopped,
and another number of workers takes each remaining record once, in as many steps.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from yolor_ray.config.train import Mix
from yolor_ray.data.loading.epoch_plan import Step
from yolor_ray.data.loading.epoch_windows import visits_of_members
from yolor_ray.data.shards.dataset import RowGroup


@dataclass(frozen=True)
class Window:
    """Row groups whose records are shuffled together and may join each other in mosaics."""

    groups: tuple[RowGroup, ...]
    order: np.ndarray
    """Numbers of all records of the window, shuffled."""
    records: np.ndarray
    """Numbers of the records to learn from in this epoch of the run, in their order: `order`, or a part of it."""
    visits: np.ndarray
    """For each of `records`, the number of the visit in this epoch of the run."""
    epoch: int
    """Epoch of the window's dataset, counted from 0: a sample depends on it."""


def plain_windows(groups: Sequence[RowGroup], *, records_per_window: int, seed: int, epoch: int, mix: Mix = "proportional") -> list[Window]:
    """Return the windows of an epoch: row groups in a seeded order, gathered until a window holds `records_per_window`.

    One window of each member of a union is open at a time. With m members, each window therefore holds 1 / m of that number.
    With `proportional`, an epoch takes each record once, and the number of a visit is that of the record. With another mix, an epoch has as
    many visits, each member has epochs of its own, which take each of its records once, and an epoch goes on where the last one stopped.
    """
    members: dict[int, list[RowGroup]] = {group.member: [] for group in groups}
    for group in groups:
        members[group.member].append(group)
    if mix == "proportional" or len(members) == 1:
        shuffled = _shuffle(groups, records_per_window, np.random.default_rng((seed, epoch)))
        return [Window(own, order, order, order, epoch) for own, order in shuffled]
    windows: list[Window] = []
    visits = 0
    quotas = visits_of_members([sum(group.rows for group in own) for own in members.values()], mix)
    for (member, own), quota in zip(members.items(), quotas, strict=True):
        for own_epoch, first, last in _own_epochs(epoch * quota, (epoch + 1) * quota, sum(group.rows for group in own)):
            rng = np.random.default_rng((seed, own_epoch, member))
            shuffled = _shuffle(own, records_per_window // len(members), rng)
            ends = itertools.accumulate(len(order) for _, order in shuffled)
            for (own_groups, order), end in zip(shuffled, ends, strict=True):
                start = end - len(order)
                records = order[max(first - start, 0) : max(last - start, 0)]
                if len(records):
                    windows.append(Window(own_groups, order, records, np.arange(visits, visits + len(records)), own_epoch))
                    visits += len(records)
    return windows


def _own_epochs(first: int, last: int, records: int) -> Iterator[tuple[int, int, int]]:
    """Yield each epoch of a dataset of so many records that visits `first` to `last` of its run belong to, and their range inside it."""
    for epoch in range(first // records, -(-last // records)):
        yield epoch, max(first - epoch * records, 0), min(last - epoch * records, records)


def _shuffle(
    groups: Sequence[RowGroup], records_per_window: int, rng: np.random.Generator
) -> list[tuple[tuple[RowGroup, ...], np.ndarray]]:
    """Return the row groups of each window, and the shuffled numbers of its records."""
    windows: list[tuple[tuple[RowGroup, ...], np.ndarray]] = []
    gathered: dict[int, list[RowGroup]] = {group.member: [] for group in groups}
    for index in rng.permutation(len(groups)):
        group = groups[index]
        gathered[group.member].append(group)
        if sum(g.rows for g in gathered[group.member]) * len(gathered) >= records_per_window:
            windows.append((tuple(gathered[group.member]), _shuffle_records(gathered[group.member], rng)))
            gathered[group.member] = []
    return windows + [(tuple(remainder), _shuffle_records(remainder, rng)) for remainder in gathered.values() if remainder]


def _shuffle_records(groups: list[RowGroup], rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(np.concatenate([np.arange(g.first_record, g.first_record + g.rows) for g in groups]))


def plain_steps(windows: list[Window], seen: np.ndarray, *, rank: int, world_size: int, batch: int) -> list[Step]:
    """Plan one worker's steps over the visits that are not yet `seen`, (visits,) bool.

    Steps hold at most `batch` records over all workers, with sizes that differ by at most one. Each worker owns a contiguous slice
    of the order, so that it reads few windows. Every step takes equally from each slice, to within one record.
    """
    turn, window_of = _interleave_members(windows)
    records, visits = (np.concatenate([getattr(w, name) for w in windows])[turn] for name in ("records", "visits"))
    remaining = np.flatnonzero(~seen[visits])
    if len(remaining) == 0:
        return []
    sizes = np.array([len(step) for step in np.array_split(remaining, math.ceil(len(remaining) / batch))])
    # Counted from the start of the epoch, so that a resume in its middle gives every worker the same records as before.
    boundaries = len(visits) - len(remaining) + np.cumsum([0, *sizes])
    # Workers take turns: the records of each worker among the first `boundaries` of the epoch, (steps + 1, world_size).
    totals = (boundaries[:, None] + world_size - 1 - np.arange(world_size)) // world_size
    taken = totals - totals[0]
    ends = taken[-1][:rank].sum() + taken[:, rank]
    shares = [remaining[start:end] for start, end in itertools.pairwise(ends)]
    # A worker without a record repeats the epoch's last record, seen or not, because that record is the same after a resume.
    indices = [share if len(share) else np.array([len(visits) - 1]) for share in shares]
    return [
        Step(records[index], visits[index], window_of[index], float(len(share) * world_size / size))
        for index, share, size in zip(indices, shares, sizes, strict=True)
    ]


def _interleave_members(windows: list[Window]) -> tuple[np.ndarray, np.ndarray]:
    """Return the order of the epoch, as indices into the records of all windows, and the index of each record's window.

    The records of each member are spread evenly over the epoch, so that every batch mixes datasets in the epoch's proportions.
    """
    sizes = [len(w.records) for w in windows]
    member_of = np.repeat([w.groups[0].member for w in windows], sizes)
    due = np.empty(len(member_of))
    for member in np.unique(member_of):
        records = np.flatnonzero(member_of == member)
        due[records] = (np.arange(len(records)) + 0.5) / len(records)
    turn = np.argsort(due, kind="stable")
    return turn, np.repeat(np.arange(len(windows)), sizes)[turn]

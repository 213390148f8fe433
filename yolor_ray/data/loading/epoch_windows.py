"""Divide the records of an epoch into windows, which are read and shuffled together.

A window holds records of one dataset alone. The windows depend on seed and epoch alone. The shuffled numbers of all records are one
array, with four bytes per record where that suffices; a window is a view of it.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from yolor_ray.config.train import Mix
from yolor_ray.data.shards.row_groups import RowGroup, RowGroups

MIX_POWERS: dict[Mix, float] = {"proportional": 1.0, "sqrt": 0.5, "equal": 0.0}
"""Power of a member's number of records that its share of an epoch is proportional to."""


@dataclass(frozen=True, eq=False, slots=True)
class Window:
    """Row groups whose records are shuffled together and may join each other in mosaics."""

    row_groups: Sequence[RowGroup]
    """All row groups of the training set, or those of the window."""
    group_numbers: np.ndarray
    """Indices in `row_groups` of the window's row groups."""
    member: int
    """Index in the union of the window's dataset."""
    order: np.ndarray
    """Numbers of all records of the window, shuffled."""
    records: np.ndarray
    """Numbers of the records to learn from in this epoch of the run, in their order: `order`, or a part of it."""
    first_visit: int | None
    """Number of the first record's visit in this epoch of the run; None where the number of a visit is that of its record."""
    epoch: int
    """Epoch of the window's dataset, counted from 0: a sample depends on it."""

    @property
    def groups(self) -> tuple[RowGroup, ...]:
        """The window's row groups."""
        return tuple(self.row_groups[number] for number in self.group_numbers.tolist())

    @property
    def visits(self) -> np.ndarray:
        """For each of `records`, the number of the visit in this epoch of the run."""
        return self.records if self.first_visit is None else np.arange(self.first_visit, self.first_visit + len(self.records))


def epoch_windows(groups: RowGroups, *, records_per_window: int, seed: int, epoch: int, mix: Mix = "proportional") -> list[Window]:
    """Return the windows of an epoch: row groups in a seeded order, gathered until a window holds `records_per_window`.

    One window of each member of a union is open at a time. With m members, each window therefore holds 1 / m of that number.
    With `proportional`, an epoch takes each record once, and the number of a visit is that of the record. With another mix, an epoch has as
    many visits, each member has epochs of its own, which take each of its records once, and an epoch goes on where the last one stopped.
    """
    member_of = groups.members
    members = np.unique(member_of).tolist()
    if mix == "proportional" or len(members) == 1:
        shuffled = _shuffle(groups, np.arange(len(groups), dtype=np.int32), records_per_window, np.random.default_rng((seed, epoch)))
        return [Window(groups, numbers, member, order, order, None, epoch) for member, numbers, order in shuffled]
    windows: list[Window] = []
    visits = 0
    numbers_of = [np.flatnonzero(member_of == member).astype(np.int32) for member in members]
    sizes = [int(groups.rows[numbers].sum()) for numbers in numbers_of]
    for member, own, size, quota in zip(members, numbers_of, sizes, visits_of_members(sizes, mix), strict=True):
        for own_epoch, first, last in _own_epochs(epoch * quota, (epoch + 1) * quota, size):
            start = 0
            rng = np.random.default_rng((seed, own_epoch, member))
            for _, numbers, order in _shuffle(groups, own, records_per_window // len(members), rng):
                records = order[max(first - start, 0) : max(last - start, 0)]
                if len(records):
                    windows.append(Window(groups, numbers, member, order, records, visits, own_epoch))
                start, visits = start + len(order), visits + len(records)
    return windows


def visits_of_members(records: Sequence[int], mix: Mix) -> list[int]:
    """Return the visits of each member of a union in an epoch: at least one of each, and over all as many as there are records.

    Args:
        records: number of records of each member.
        mix: share of a member: `proportional` to its records, to their square root (`sqrt`), or `equal`.
    """
    weights = np.array(records, float) ** MIX_POWERS[mix]
    ends = np.cumsum(weights) / weights.sum() * (sum(records) - len(records))
    return [int(visits) + 1 for visits in np.diff(np.rint(ends), prepend=0)]


def _own_epochs(first: int, last: int, records: int) -> Iterator[tuple[int, int, int]]:
    """Yield each epoch of a dataset of so many records that visits `first` to `last` of its run belong to, and their range inside it."""
    for epoch in range(first // records, -(-last // records)):
        yield epoch, max(first - epoch * records, 0), min(last - epoch * records, records)


def _shuffle(
    groups: RowGroups, numbers: np.ndarray, records_per_window: int, rng: np.random.Generator
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield the member of each window, the numbers of its row groups, and the shuffled numbers of its records.

    Windows come in the order in which they are full; the remainders of the members come last.
    """
    numbers = numbers[rng.permutation(len(numbers))]
    member_of = groups.members[numbers]
    members = np.unique(member_of).tolist()
    full: list[tuple[int, int, np.ndarray]] = []
    for member in members:
        own = np.flatnonzero(member_of == member)
        ends = _window_ends(groups.rows[numbers[own]], -(-records_per_window // len(members)))
        full += [(int(own[end - 1]), member, own[start:end]) for start, end in itertools.pairwise([0, *ends])]
        remainder = own[ends[-1] if ends else 0 :]
        full += [(len(numbers) + member, member, remainder)] * bool(len(remainder))
    full.sort(key=lambda window: window[0])
    gathered = numbers[np.concatenate([own for _, _, own in full])]
    order = _record_numbers(groups.starts[gathered], groups.rows[gathered])
    group_ends = np.cumsum([len(own) for _, _, own in full])
    record_ends = np.cumsum(groups.rows[gathered])[group_ends - 1].tolist()
    group_start = record_start = 0
    for (_, member, _), group_end, record_end in zip(full, group_ends.tolist(), record_ends, strict=True):
        window = order[record_start:record_end]
        rng.shuffle(window)
        yield member, gathered[group_start:group_end], window
        group_start, record_start = group_end, record_end


def _window_ends(rows: np.ndarray, least: int) -> list[int]:
    """Return the end of each full window among consecutive row groups: the first from its start on with at least `least` records."""
    ends: list[int] = []
    totals = np.cumsum(rows)
    taken = 0
    while (end := int(totals.searchsorted(taken + max(least, 1)))) < len(totals):
        ends.append(end + 1)
        taken = totals[end]
    return ends


def _record_numbers(starts: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the numbers of the records of row groups, in the order of the groups, without other arrays of that length."""
    largest = int((starts + rows).max())
    # Differences between neighbours: 1 inside a row group.
    positions, differences = np.cumsum(rows) - rows, starts.copy()
    differences[1:] -= starts[:-1] + rows[:-1] - 1
    numbers = np.ones(int(rows.sum()), np.int32 if largest <= np.iinfo(np.int32).max else np.int64)
    numbers[positions] = differences
    return np.cumsum(numbers, out=numbers, dtype=numbers.dtype)

"""Row groups of a dataset, numbered in the order of the records and kept as arrays: ten million records have 156,250 row groups."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np


@dataclass(frozen=True)
class RowGroup:
    """The unit of reading: consecutive records of one shard."""

    shard: str
    """File name of the shard."""
    index: int
    """Index in the shard."""
    first_record: int
    """Number in the dataset of the group's first record."""
    rows: int
    """Records in the group."""
    member: int = 0
    """Index in the union of the group's dataset."""


class RowGroups(Sequence[RowGroup]):
    """All row groups of a dataset; a row group is made when it is asked for."""

    def __init__(self, shards: Iterable[tuple[int, str, Sequence[int]]]) -> None:
        """Collect the row groups of shards.

        Args:
            shards: for each shard, the index in the union of its dataset, its file name, and the rows of its groups.
        """
        described = list(shards)
        self._names = [name for _, name, _ in described]
        self._first_groups = np.cumsum([0, *(len(rows) for _, _, rows in described)])
        self._members = np.array([member for member, _, _ in described], np.int32)
        self.rows = np.fromiter(itertools.chain.from_iterable(rows for _, _, rows in described), np.int64, self._first_groups[-1])
        """(G,) int64: records in each group."""
        self.starts = np.cumsum(self.rows) - self.rows
        """(G,) int64: number in the dataset of each group's first record."""

    @property
    def members(self) -> np.ndarray:
        """(G,) int32: index in the union of each group's dataset."""
        return np.repeat(self._members, np.diff(self._first_groups))

    def __len__(self) -> int:
        """Return the number of row groups."""
        return len(self.rows)

    @overload
    def __getitem__(self, number: int) -> RowGroup: ...
    @overload
    def __getitem__(self, number: slice) -> list[RowGroup]: ...
    def __getitem__(self, number: int | slice) -> RowGroup | list[RowGroup]:
        """Return one row group, or several."""
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        shard = int(np.searchsorted(self._first_groups, number, side="right")) - 1
        index = number - int(self._first_groups[shard])
        return RowGroup(self._names[shard], index, int(self.starts[number]), int(self.rows[number]), int(self._members[shard]))

    def number_of(self, record: int) -> int:
        """Return the number of the row group that holds a record."""
        return int(np.searchsorted(self.starts, record, side="right")) - 1

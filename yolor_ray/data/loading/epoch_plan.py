"""Plan an epoch: cut the seeded order of its records into equal steps and worker shares.

The members of a union take turns in proportion to their shares of the epoch. The order depends on seed and epoch alone; so do the number
of steps and the records per step over all workers. The records that remain after a checkpoint are planned by the same rule. The same
number of workers therefore continues exactly where it stopped, and another number of workers takes each remaining record once, in as many
steps. A step is computed when it is asked for: an epoch of ten million records has 625,000 steps of 16.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from yolor_ray.data.loading.epoch_windows import Window

CHUNK = 4096
"""Records whose turns are computed together."""
KEPT_CHUNKS = 8
"""Chunks whose turns are kept: the loader, its reader and the trainer ask for steps of neighbouring chunks."""


@dataclass(frozen=True)
class Step:
    """Records of one worker's batch, and the windows that these records and their mosaic partners come from."""

    records: np.ndarray
    """Record numbers."""
    visits: np.ndarray
    """For each record, the number of the visit in the epoch, for the ledger."""
    windows: np.ndarray
    """For each record, the index of its window in the epoch."""
    weight: float
    """Loss weight: world_size x (own records / all records). 0 where the worker repeats a record to keep collectives aligned."""


class Steps(Sequence[Step]):
    """One worker's steps of an epoch; see `plan_steps`."""

    def __init__(self, remaining: "_RemainingVisits", rank: int, world_size: int, batch: int) -> None:
        self._remaining, self._rank, self._world_size = remaining, rank, world_size
        self._count = math.ceil(len(remaining) / batch)
        self._numbers = range(self._count)
        self._first = sum(self._taken(self._count, other) for other in range(rank))
        self.largest = max(math.ceil(min(len(remaining), batch) / world_size), 1)
        """Most records that a step may have."""

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self._numbers)

    @overload
    def __getitem__(self, number: int) -> Step: ...
    @overload
    def __getitem__(self, number: slice) -> "Steps": ...
    def __getitem__(self, number: "int | slice") -> "Step | Steps":
        """Return one step, or a part of the steps."""
        if isinstance(number, slice):
            part = object.__new__(Steps)
            part.__dict__ |= self.__dict__ | {"_numbers": self._numbers[number]}
            return part
        number = self._numbers[number]
        share = (self._taken(number + each, self._rank) for each in (0, 1))
        start, end = (self._first + taken for taken in share)
        records, visits, windows = self._remaining.take(start, end) if start < end else self._remaining.last()
        size = self._boundary(number + 1) - self._boundary(number)
        return Step(records, visits, windows, float((end - start) * self._world_size / size))

    def _boundary(self, number: int) -> int:
        """Return the visits of the epoch before a step, over all workers: the first steps hold one more where they cannot be equal."""
        size, larger = divmod(len(self._remaining), max(self._count, 1))
        # Counted from the start of the epoch, so that a resume in its middle gives every worker the same records as before.
        return self._remaining.seen + number * size + min(number, larger)

    def _taken(self, number: int, rank: int) -> int:
        """Return the remaining visits of a worker before a step. Workers take turns from the start of the epoch on."""
        before, now = ((self._boundary(each) + self._world_size - 1 - rank) // self._world_size for each in (0, number))
        return now - before


def plan_steps(windows: Sequence[Window], seen: np.ndarray, *, rank: int, world_size: int, batch: int) -> Steps:
    """Plan one worker's steps over the visits that are not yet `seen`, (visits,) bool.

    Steps hold at most `batch` records over all workers, with sizes that differ by at most one. Each worker owns a contiguous slice
    of the order, so that it reads few windows. Every step takes equally from each slice, to within one record. A worker without a record in
    a step repeats the epoch's last record, seen or not, because that record is the same after a resume.
    """
    return Steps(_RemainingVisits(windows, seen), rank, world_size, batch)


def windows_in_use(steps: Sequence[Step]) -> Iterator[int]:
    """Yield the index of each window that steps need, in the order of their first use."""
    known = set()
    for step in steps:
        for window in step.windows.tolist():
            if window not in known:
                known.add(window)
                yield window


class _RemainingVisits:
    """The visits of an epoch that are not yet seen, in the order of the epoch."""

    def __init__(self, windows: Sequence[Window], seen: np.ndarray) -> None:
        self._windows = windows
        self._starts = np.cumsum([0, *(len(window.records) for window in windows)])
        self._visits = int(self._starts[-1])
        self._turns = _Turns(windows, self._starts)
        self.seen = 0
        """Visits that are seen."""
        if seen.any():
            seen_there = np.concatenate([seen[window.visits] for window in windows])
            turns = (np.arange(first, min(first + CHUNK, self._visits)) for first in range(0, self._visits, CHUNK))
            left = [~seen_there[self._turns.positions(chunk)] for chunk in turns]
            self._is_left = np.concatenate(left)
            self._left_before = np.cumsum([0, *(np.count_nonzero(chunk) for chunk in left)])
            self.seen = self._visits - int(self._left_before[-1])

    def __len__(self) -> int:
        return self._visits - self.seen

    def take(self, start: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return records, visits and windows of a range of the remaining visits."""
        return self._at(np.arange(start, end) if self.seen == 0 else self._turns_left(start, end))

    def last(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return record, visit and window of the last visit of the epoch."""
        return self._at(np.array([self._visits - 1]))

    def _turns_left(self, start: int, end: int) -> np.ndarray:
        """Return the turns of a range of the remaining visits."""
        first = int(np.searchsorted(self._left_before, start, side="right")) - 1
        last = int(np.searchsorted(self._left_before, end))
        turns = first * CHUNK + np.flatnonzero(self._is_left[first * CHUNK : last * CHUNK])
        skipped = int(self._left_before[first])
        return turns[start - skipped : end - skipped]

    def _at(self, turns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        positions = self._turns.positions(turns)
        windows = np.searchsorted(self._starts, positions, side="right") - 1
        places = [
            (self._windows[w], offset) for w, offset in zip(windows.tolist(), (positions - self._starts[windows]).tolist(), strict=True)
        ]
        records = np.array([window.records[offset] for window, offset in places], np.int64)
        if places[0][0].first_visit is None:
            return records, records, windows
        return records, np.array([(window.first_visit or 0) + offset for window, offset in places], np.int64), windows


class _Turns:
    """Turns of the members of a union: which of the records of all windows comes when in the epoch.

    The records of each member are spread evenly over the epoch, so that every batch mixes datasets in the epoch's proportions: the k-th
    of n records of a member is due at (k + 0.5) / n of the epoch. A chunk of turns holds the records that are due in a part of the epoch.
    """

    def __init__(self, windows: Sequence[Window], starts: np.ndarray) -> None:
        """Cut the epoch into chunks; `starts` (windows + 1,) counts the records of the windows before each."""
        member_of = np.array([window.member for window in windows])
        limits = np.linspace(0, 1, math.ceil(starts[-1] / CHUNK) + 1)
        self._starts = starts
        self._windows = [np.flatnonzero(member_of == member) for member in np.unique(member_of)]
        self._own_starts = [np.cumsum([0, *np.diff(starts)[own]]) for own in self._windows]
        self._due_before = np.stack([_count_due(int(own[-1]), limits) for own in self._own_starts])
        self._chunk_starts = self._due_before.sum(axis=0)
        self._chunks: dict[int, np.ndarray] = {}

    def positions(self, turns: np.ndarray) -> np.ndarray:
        """Return the indices into the records of all windows at ascending turns."""
        if len(self._windows) == 1:
            return turns
        first, last = np.searchsorted(self._chunk_starts, turns[[0, -1]], side="right") - 1
        chunks = np.concatenate([self._chunk(chunk) for chunk in range(first, last + 1)])
        positions: np.ndarray = chunks[turns - self._chunk_starts[first]]
        return positions

    def _chunk(self, chunk: int) -> np.ndarray:
        """Return the indices into the records of all windows at the turns of a chunk; several threads may ask."""
        kept = self._chunks
        if chunk not in kept:
            if len(kept) >= KEPT_CHUNKS:
                kept = self._chunks = {}
            kept[chunk] = self._sort_chunk(chunk)
        return kept[chunk]

    def _sort_chunk(self, chunk: int) -> np.ndarray:
        positions, due = [], []
        for windows, own_starts, before in zip(self._windows, self._own_starts, self._due_before, strict=True):
            numbers = np.arange(before[chunk], before[chunk + 1])
            own = np.searchsorted(own_starts, numbers, side="right") - 1
            positions.append(self._starts[windows[own]] + numbers - own_starts[own])
            due.append((numbers + 0.5) / own_starts[-1])
        joined = np.concatenate(positions)
        return joined[np.lexsort((joined, np.concatenate(due)))]


def _count_due(records: int, limits: np.ndarray) -> np.ndarray:
    """Return the number of records of a member that are due before each limit, exactly as the comparison of floats says."""
    counts = np.ceil(limits * records - 0.5).astype(np.int64)
    counts += (counts + 0.5) / records < limits
    counts -= (counts - 0.5) / records >= limits
    return counts

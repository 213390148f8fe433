"""Cut the steps of an epoch into slices that several loaders make apart from each other.

A slice holds its own windows and row groups alone, so that a message with it stays small for a dataset of any size. Slices end where a
worker goes on to the next window: a mosaic takes its tiles from one window, which is decoded once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from yolor_ray.data.loading.epoch_plan import Step
from yolor_ray.data.loading.epoch_windows import Window


@dataclass(frozen=True)
class EpochSlice:
    """Consecutive steps of an epoch, and the windows that they need."""

    windows: Mapping[int, Window]
    """Windows by their index in the epoch."""
    steps: Sequence[Step]


def cut_into_slices(windows: Sequence[Window], steps: Sequence[Step], records: int) -> Iterator[EpochSlice]:
    """Yield slices of about so many records, or more: a slice ends before the first step that needs another window.

    `records` is that of `records_per_window`. A slice of one dataset then needs one window, and a second one for the step that has records
    of both.
    """
    taken: list[Step] = []
    used: set[int] = set()
    for step in steps:
        needed = set(step.windows.tolist())
        if not needed <= used and sum(len(each.records) for each in [*taken, step]) >= records:
            if taken:
                yield _slice(windows, used, taken)
            taken, used = [], set()
        taken.append(step)
        used |= needed
    if taken:
        yield _slice(windows, used, taken)


def _slice(windows: Sequence[Window], used: set[int], steps: list[Step]) -> EpochSlice:
    return EpochSlice({index: _alone(windows[index]) for index in used}, steps)


def _alone(window: Window) -> Window:
    """Return a window without the row groups of the others."""
    return replace(window, row_groups=window.groups, group_numbers=np.arange(len(window.group_numbers)))

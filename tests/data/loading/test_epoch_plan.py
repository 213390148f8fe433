"""The plan of an epoch over many sizes: every record once, equal shares, and an exact resume."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolor_ray.data.loading.epoch_plan import Step, Steps, plan_steps
from yolor_ray.data.loading.epoch_windows import Window, epoch_windows, visits_of_members
from yolor_ray.data.shards.row_groups import RowGroups

WORLDS, BATCHES = (1, 2, 3, 5), (1, 2, 3, 8)


def rows_of(images: int, rows: int) -> list[int]:
    return [min(rows, images - first) for first in range(0, images, rows)]


def groups_of(images: int, rows: int) -> RowGroups:
    return RowGroups([(0, "part", rows_of(images, rows))])


def windows_of(images: int, rows: int = 4, per_window: int = 10, seed: int = 0, epoch: int = 0) -> list[Window]:
    return epoch_windows(groups_of(images, rows), records_per_window=per_window, seed=seed, epoch=epoch)


def shares(windows: list[Window], seen: np.ndarray, world_size: int, batch: int) -> list[Steps]:
    return [plan_steps(windows, seen, rank=rank, world_size=world_size, batch=batch) for rank in range(world_size)]


def numbers(steps: Sequence[Step]) -> list[list[int]]:
    return [step.records.tolist() for step in steps]


def times_taken(plan: Sequence[Sequence[Step]], images: int) -> np.ndarray:
    """Return (images,) the number of times each record is learned from; records repeated with weight 0 do not count."""
    return np.bincount([record for steps in plan for step in steps if step.weight > 0 for record in step.records], minlength=images)


def seen_after(windows: list[Window], seen: np.ndarray, *, steps: int, world_size: int, batch: int) -> np.ndarray:
    """Return `seen` after all workers have taken their first `steps` steps."""
    return seen | (times_taken([plan[:steps] for plan in shares(windows, seen, world_size, batch)], len(seen)) > 0)


SIZES = [(images, world_size, batch) for images in (1, 2, 3, 7, 16, 41, 100) for world_size in WORLDS for batch in BATCHES]


@pytest.mark.parametrize(("images", "world_size", "batch"), SIZES)
def test_every_record_is_taken_once_over_all_workers(images, world_size, batch):
    plan = shares(windows_of(images), np.zeros(images, bool), world_size, batch)
    assert (times_taken(plan, images) == 1).all()


@pytest.mark.parametrize(("images", "world_size", "batch"), SIZES)
def test_the_records_per_step_do_not_depend_on_the_number_of_workers(images, world_size, batch):
    plan = shares(windows_of(images), np.zeros(images, bool), world_size, batch)
    sizes = [sum(len(step.records) for step in steps if step.weight > 0) for steps in zip(*plan, strict=True)]
    assert sizes == [len(step) for step in np.array_split(np.arange(images), math.ceil(images / batch))]
    for steps in zip(*plan, strict=True):
        counts = [len(step.records) for step in steps]
        assert 1 <= min(counts) <= max(counts) <= math.ceil(batch / world_size)
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(("images", "world_size", "batch"), SIZES)
def test_weights_turn_the_mean_over_workers_into_the_mean_over_records(images, world_size, batch):
    for steps in zip(*shares(windows_of(images), np.zeros(images, bool), world_size, batch), strict=True):
        values = [float(step.records.mean()) for step in steps]
        taken = np.concatenate([step.records for step in steps if step.weight > 0])
        assert np.mean([value * step.weight for value, step in zip(values, steps, strict=True)]) == pytest.approx(taken.mean())


@pytest.mark.parametrize(("images", "world_size", "batch"), SIZES)
def test_each_record_of_a_step_comes_with_its_window(images, world_size, batch):
    windows = windows_of(images)
    for steps in shares(windows, np.zeros(images, bool), world_size, batch):
        for step in steps:
            assert all(record in windows[w].order for record, w in zip(step.records, step.windows, strict=True))


@pytest.mark.parametrize(("images", "world_size", "batch"), SIZES)
def test_the_same_number_of_workers_continues_exactly_where_it_stopped(images, world_size, batch):
    windows, nothing = windows_of(images), np.zeros(images, bool)
    uninterrupted = shares(windows, nothing, world_size, batch)
    for taken in range(len(uninterrupted[0])):
        seen = seen_after(windows, nothing, steps=taken, world_size=world_size, batch=batch)
        resumed = shares(windows, seen, world_size, batch)
        assert [numbers(steps) for steps in resumed] == [numbers(steps[taken:]) for steps in uninterrupted], f"after {taken} steps"


@pytest.mark.parametrize(("images", "world_size", "batch"), SIZES)
def test_a_run_can_stop_twice_in_one_epoch(images, world_size, batch):
    windows, nothing = windows_of(images), np.zeros(images, bool)
    once = seen_after(windows, nothing, steps=3, world_size=world_size, batch=batch)
    twice = seen_after(
        windows, seen_after(windows, nothing, steps=1, world_size=world_size, batch=batch), steps=2, world_size=world_size, batch=batch
    )
    assert np.array_equal(once, twice)


@pytest.mark.parametrize(("before", "after"), [(a, b) for a, b in itertools.product(WORLDS, WORLDS) if a != b])
@pytest.mark.parametrize("batch", BATCHES)
def test_another_number_of_workers_takes_each_remaining_record_once_in_the_remaining_steps(before, after, batch):
    for images in (7, 41, 100):
        windows, nothing = windows_of(images), np.zeros(images, bool)
        count = len(plan_steps(windows, nothing, rank=0, world_size=before, batch=batch))
        for taken in {0, 1, count // 2, count - 1}:
            seen = seen_after(windows, nothing, steps=taken, world_size=before, batch=batch)
            resumed = shares(windows, seen, after, batch)
            assert np.array_equal(times_taken(resumed, images), ~seen)
            assert {len(steps) for steps in resumed} == {count - taken}


@given(
    images=st.integers(1, 120),
    batch=st.integers(1, 12),
    attempts=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 6)), max_size=8),
)
def test_any_series_of_attempts_takes_each_record_once_in_the_same_number_of_steps(images, batch, attempts):
    windows, seen, taken = windows_of(images, seed=3), np.zeros(images, bool), 0
    count = math.ceil(images / batch)
    for world_size, steps in attempts:
        steps = min(steps, count - taken)
        plan = [share[:steps] for share in shares(windows, seen, world_size, batch)]
        assert not (times_taken(plan, images).astype(bool) & seen).any()
        seen, taken = seen_after(windows, seen, steps=steps, world_size=world_size, batch=batch), taken + steps
    assert len(plan_steps(windows, seen, rank=0, world_size=1, batch=batch)) == count - taken
    assert np.array_equal(times_taken(shares(windows, seen, 2, batch), images), ~seen)


@pytest.mark.parametrize("world_size", WORLDS)
def test_after_the_last_step_no_record_remains(world_size):
    windows, nothing = windows_of(41), np.zeros(41, bool)
    seen = seen_after(windows, nothing, steps=100, world_size=world_size, batch=3)
    assert seen.all()
    assert [len(steps) for steps in shares(windows, seen, world_size, 3)] == [0] * world_size
    assert not nothing.any(), "the plan must not write into its arguments"


def test_the_order_depends_on_seed_and_epoch():
    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate([w.order for w in windows_of(100, seed=seed, epoch=epoch)]).tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6
    assert sorted(order(1, 2)) == list(range(100))


@pytest.mark.parametrize(("images", "rows", "per_window"), [(1, 4, 10), (40, 4, 10), (41, 4, 12), (100, 64, 64), (100, 7, 1000)])
def test_windows_gather_whole_row_groups_until_they_are_full(images, rows, per_window):
    windows = windows_of(images, rows, per_window)
    assert sorted(g.index for w in windows for g in w.groups) == list(range(len(groups_of(images, rows))))
    for window in windows:
        assert sorted(window.order) == sorted(n for g in window.groups for n in range(g.first_record, g.first_record + g.rows))
    for window in windows[:-1]:
        assert len(window.order) >= per_window
        assert len(window.order) - window.groups[-1].rows < per_window


def test_a_single_dataset_is_taken_window_by_window():
    windows = windows_of(41)
    steps = plan_steps(windows, np.zeros(41, bool), rank=0, world_size=1, batch=8)
    assert np.array_equal(np.concatenate([step.records for step in steps]), np.concatenate([w.order for w in windows]))


def union_of(*sizes: int, rows: int = 4) -> RowGroups:
    """Make the row groups of a union of datasets of these sizes."""
    return RowGroups((member, "part", rows_of(size, rows)) for member, size in enumerate(sizes))


UNIONS = [(40, 8), (8, 40), (41, 7, 3), (1, 60), (5, 5, 5, 5)]


def members_of(records: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    return np.searchsorted(np.cumsum(sizes), records, side="right")


@pytest.mark.parametrize("sizes", UNIONS)
def test_a_window_of_a_union_holds_records_of_one_dataset(sizes):
    windows = epoch_windows(union_of(*sizes), records_per_window=10, seed=0, epoch=0)
    assert all(len(set(members_of(w.order, sizes).tolist())) == 1 for w in windows)
    assert sorted(np.concatenate([w.order for w in windows]).tolist()) == list(range(sum(sizes)))


@pytest.mark.parametrize("sizes", UNIONS)
@pytest.mark.parametrize(("world_size", "batch"), [(1, 1), (1, 6), (2, 4), (3, 5)])
def test_every_record_of_a_union_is_taken_once_also_after_a_resume_by_another_number_of_workers(sizes, world_size, batch):
    windows, nothing = epoch_windows(union_of(*sizes), records_per_window=10, seed=1, epoch=2), np.zeros(sum(sizes), bool)
    uninterrupted = shares(windows, nothing, world_size, batch)
    assert (times_taken(uninterrupted, sum(sizes)) == 1).all()
    for steps in uninterrupted:
        assert all(record in windows[w].order for step in steps for record, w in zip(step.records, step.windows, strict=True))
    seen = seen_after(windows, nothing, steps=2, world_size=world_size, batch=batch)
    assert [numbers(steps) for steps in shares(windows, seen, world_size, batch)] == [numbers(steps[2:]) for steps in uninterrupted]
    again = times_taken(shares(windows, seen, world_size + 1, batch), sum(sizes))
    assert np.array_equal(again, ~seen)


@pytest.mark.parametrize("sizes", UNIONS)
def test_every_slice_of_an_epoch_mixes_datasets_in_the_proportions_of_the_epoch(sizes):
    windows = epoch_windows(union_of(*sizes), records_per_window=10, seed=0, epoch=0)
    (order,) = numbers(plan_steps(windows, np.zeros(sum(sizes), bool), rank=0, world_size=1, batch=sum(sizes)))
    taken = np.cumsum(np.eye(len(sizes))[members_of(np.array(order), sizes)], axis=0)
    due = np.outer(np.arange(1, sum(sizes) + 1) / sum(sizes), sizes)
    assert np.abs(taken - due).max() < len(sizes), "a dataset is ahead or behind by as many records as there are datasets"


@pytest.mark.parametrize(
    ("mix", "records", "expected"),
    [
        ("equal", [400, 100, 100], [200, 200, 200]),
        ("sqrt", [400, 100, 100], [300, 150, 150]),
        ("equal", [1, 1, 1], [1, 1, 1]),
        ("sqrt", [1, 100_000], [317, 99_684]),
    ],
)
def test_shares_of_the_datasets_follow_the_mix(mix, records, expected):
    visits = visits_of_members(records, mix)
    assert visits == pytest.approx(expected, abs=2) and sum(visits) == sum(records) and min(visits) >= 1


@pytest.mark.parametrize("mix", ["equal", "sqrt"])
@pytest.mark.parametrize("sizes", UNIONS)
def test_each_dataset_of_a_mix_has_epochs_of_its_own_that_take_each_record_once(sizes, mix):
    total, quotas = sum(sizes), visits_of_members(sizes, mix)
    own_epochs: dict[tuple[int, int], list[int]] = {}
    for epoch in range(7):
        windows = epoch_windows(union_of(*sizes), records_per_window=10, seed=0, epoch=epoch, mix=mix)
        steps = [step for share in shares(windows, np.zeros(total, bool), 2, 6) for step in share if step.weight > 0]
        assert sorted(np.concatenate([step.visits for step in steps]).tolist()) == list(range(total))
        counts = np.bincount(members_of(np.concatenate([step.records for step in steps]), sizes), minlength=len(sizes))
        assert counts.tolist() == quotas
        for window in windows:
            own_epochs.setdefault((window.groups[0].member, window.epoch), []).extend(window.records)
    for (member, epoch), records in own_epochs.items():
        first, size = sum(sizes[:member]), sizes[member]
        assert len(set(records)) == len(records), "a record was taken twice in an epoch of its dataset"
        if (epoch + 1) * size <= 7 * quotas[member]:
            assert sorted(records) == list(range(first, first + size))
    assert {epoch for member, epoch in own_epochs if member == 0} == set(range(math.ceil(7 * quotas[0] / sizes[0])))


@pytest.mark.parametrize("sizes", UNIONS)
@pytest.mark.parametrize(("world_size", "batch"), [(1, 6), (2, 4), (3, 5)])
def test_a_mix_continues_exactly_where_it_stopped(sizes, world_size, batch):
    windows, seen = epoch_windows(union_of(*sizes), records_per_window=10, seed=1, epoch=2, mix="equal"), np.zeros(sum(sizes), bool)
    uninterrupted = shares(windows, seen, world_size, batch)
    for step in (step for share in uninterrupted for step in share[:2] if step.weight > 0):
        seen[step.visits] = True
    assert [numbers(steps) for steps in shares(windows, seen, world_size, batch)] == [numbers(steps[2:]) for steps in uninterrupted]
    others = [step.visits for share in shares(windows, seen, world_size + 1, batch) for step in share if step.weight > 0]
    assert sorted(np.concatenate([*others, np.flatnonzero(seen)]).tolist()) == list(range(sum(sizes)))


def test_samples_of_a_record_differ_between_the_epochs_of_its_dataset():
    windows = epoch_windows(union_of(60, 4), records_per_window=10, seed=0, epoch=0, mix="equal")
    epochs = [window.epoch for window in windows if window.groups[0].member == 1]
    assert epochs == sorted(epochs) and len(set(epochs)) == 8, "32 visits of 4 records are 8 epochs"


def test_the_open_windows_of_a_union_hold_together_as_many_records_as_one_window_of_a_dataset():
    windows = epoch_windows(union_of(400, 400), records_per_window=100, seed=0, epoch=0)
    assert all(len(w.order) == 52 for w in windows[:-2]), "the first multiple of 4 from 50 on"


def test_records_are_mixed_across_the_row_groups_of_a_window():
    [window] = windows_of(100, rows=10, per_window=1000)
    groups = window.order // 10
    assert (np.diff(groups) != 0).mean() > 0.7

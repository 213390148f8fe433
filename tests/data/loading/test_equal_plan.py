"""The plan of an epoch equals, record for record, the one that is computed whole, and it takes little memory."""

import pickle
import tracemalloc
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plain_plan import plain_steps, plain_windows
from yolor_ray.data.loading import epoch_plan
from yolor_ray.data.loading.epoch_plan import plan_steps, windows_in_use
from yolor_ray.data.loading.epoch_windows import epoch_windows
from yolor_ray.data.shards.row_groups import RowGroups

MIXES = ("proportional", "sqrt", "equal")


def row_groups(sizes: list[int], rows: int, per_shard: int) -> RowGroups:
    """Make the row groups of a union of datasets of these sizes, in shards of `per_shard` groups."""
    shards = []
    for member, size in enumerate(sizes):
        groups = [min(rows, size - first) for first in range(0, size, rows)]
        shards += [(member, f"part-{first}", groups[first : first + per_shard]) for first in range(0, len(groups), per_shard)]
    return RowGroups(shards)


def assert_equal_windows(found, expected) -> None:
    assert len(found) == len(expected)
    for ours, plain in zip(found, expected, strict=True):
        assert ours.groups == plain.groups and ours.member == plain.groups[0].member and ours.epoch == plain.epoch
        for name in ("order", "records", "visits"):
            assert np.array_equal(getattr(ours, name), getattr(plain, name)), name


def assert_equal_steps(found, expected) -> None:
    assert len(found) == len(expected)
    assert max((len(step.records) for step in expected), default=0) <= found.largest
    for ours, plain in zip(found, expected, strict=True):
        assert ours.weight == plain.weight
        for name in ("records", "visits", "windows"):
            assert np.array_equal(getattr(ours, name), getattr(plain, name)), name
            assert getattr(ours, name).dtype == np.int64


def seen_after(windows, attempts, visits: int) -> np.ndarray:
    """Return the visits that attempts of some workers, batch and steps have taken, one after another."""
    seen = np.zeros(visits, bool)
    for world_size, batch, steps in attempts:
        plan = [plain_steps(windows, seen, rank=rank, world_size=world_size, batch=batch)[:steps] for rank in range(world_size)]
        for step in (step for share in plan for step in share if step.weight > 0):
            seen[step.visits] = True
    return seen


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 90), min_size=1, max_size=4),
    rows=st.integers(1, 9),
    per_window=st.integers(1, 40),
    seeds=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    mix=st.sampled_from(MIXES),
    attempts=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(0, 12)), max_size=2),
    world_size=st.integers(1, 6),
    batch=st.integers(1, 20),
    chunk=st.sampled_from([1, 7, 4096]),
)
def test_the_plan_equals_the_one_that_is_computed_whole(sizes, rows, per_window, seeds, mix, attempts, world_size, batch, chunk):
    groups = row_groups(sizes, rows, per_shard=3)
    options = {"records_per_window": per_window, "seed": seeds[0], "epoch": seeds[1], "mix": mix}
    windows, plain = epoch_windows(groups, **options), plain_windows(list(groups), **options)
    assert_equal_windows(windows, plain)
    seen = seen_after(plain, attempts, sum(sizes))
    with mock.patch.object(epoch_plan, "CHUNK", chunk):
        for rank in range(world_size):
            expected = plain_steps(plain, seen, rank=rank, world_size=world_size, batch=batch)
            steps = plan_steps(windows, seen, rank=rank, world_size=world_size, batch=batch)
            assert_equal_steps(steps, expected)
            assert_equal_steps(steps[2:], expected[2:])
            assert list(windows_in_use(steps)) == list(dict.fromkeys(int(w) for step in expected for w in step.windows))


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("sizes", [[20_000], [9000, 9000, 2000], [19_000, 37]])
def test_the_plan_of_many_records_equals_the_one_that_is_computed_whole(sizes, mix):
    groups = row_groups(sizes, 64, per_shard=8)
    options = {"records_per_window": 1024, "seed": 5, "epoch": 1, "mix": mix}
    windows, plain = epoch_windows(groups, **options), plain_windows(list(groups), **options)
    assert_equal_windows(windows, plain)
    for seen in (np.zeros(sum(sizes), bool), seen_after(plain, [(2, 16, 300)], sum(sizes)), np.arange(sum(sizes)) % 3 == 0):
        for rank in (0, 2):
            expected = plain_steps(plain, seen, rank=rank, world_size=3, batch=16)
            steps = plan_steps(windows, seen, rank=rank, world_size=3, batch=16)
            assert_equal_steps(steps, expected)
            sent, _ = pickle.loads(pickle.dumps((steps, windows)))
            assert_equal_steps(sent[:5], expected[:5])


@pytest.mark.parametrize("sizes", [[1_000_000], [600_000, 400_000]])
def test_a_plan_takes_less_than_six_bytes_per_record(sizes):
    groups = row_groups(sizes, 64, per_shard=64)
    # NumPy imports modules on their first use.
    epoch_windows(row_groups([64], 64, per_shard=1), records_per_window=1024, seed=0, epoch=0)
    seen = np.zeros(sum(sizes), bool)
    tracemalloc.start()
    try:
        windows = epoch_windows(groups, records_per_window=1024, seed=0, epoch=0)
        steps = plan_steps(windows, seen, rank=1, world_size=2, batch=16)
        assert len(steps[0].records) == len(steps[len(steps) - 1].records) == 8
        assert tracemalloc.get_traced_memory()[1] < 6 * sum(sizes)
    finally:
        tracemalloc.stop()


def test_record_numbers_over_two_billion_stay_whole():
    groups = RowGroups([(0, "part", [3, 2])])
    groups.starts += 2**31 - 2
    (window,) = epoch_windows(groups, records_per_window=100, seed=0, epoch=0)
    assert sorted(window.order.tolist()) == list(range(2**31 - 2, 2**31 + 3))


@pytest.mark.parametrize("number", [0, 3, 4, 9, -1])
def test_a_row_group_has_its_place_in_shard_dataset_and_union(number):
    groups = row_groups([25, 11], 4, per_shard=3)
    first = np.cumsum([0, 4, 4, 4, 4, 4, 4, 1, 4, 4])[number]
    group = groups[number]
    assert len(groups) == 10 and list(groups)[number] == group and groups[number:][:1] == [group]
    assert group.first_record == first and groups.number_of(int(first)) == groups.number_of(int(first + group.rows - 1)) == number % 10
    expected = {0: ("part-0", 0, 0), 3: ("part-3", 0, 0), 4: ("part-3", 1, 0), 9: ("part-0", 2, 1), -1: ("part-0", 2, 1)}[number]
    assert (group.shard, group.index, group.member) == expected


def test_there_is_no_row_group_after_the_last():
    with pytest.raises(IndexError):
        row_groups([25], 4, per_shard=3)[7]

"""Slices of an epoch hold what a loader elsewhere needs, and no more; their batches are those of the whole epoch."""

import pickle
from collections.abc import Iterable, Iterator
from contextlib import closing

import numpy as np
import pyarrow as pa
import pytest

from yolor_ray.config import AugmentConfig
from yolor_ray.data.augment.label_spec import LabelSpec
from yolor_ray.data.loading.batch import Batch
from yolor_ray.data.loading.epoch_plan import Steps, plan_steps
from yolor_ray.data.loading.epoch_slices import EpochSlice, cut_into_slices
from yolor_ray.data.loading.epoch_windows import Window, epoch_windows
from yolor_ray.data.loading.loader import Loader
from yolor_ray.data.shards.arrow import to_table
from yolor_ray.data.shards.row_groups import RowGroup, RowGroups
from yolor_ray.data.synthetic.scenes import IMAGE_CLASSES, KEYPOINT_NAMES, scene

IMAGES, ROWS, SIDE, BATCH, PER_WINDOW = 60, 4, 64, 3, 12
ONE_DATASET = RowGroups([(0, "part", [ROWS] * (IMAGES // ROWS))])
TWO_DATASETS = RowGroups([(0, "part", [ROWS] * 11), (1, "part", [ROWS] * 4)])
EVERYTHING = LabelSpec(
    masks=True, keypoint_names=KEYPOINT_NAMES, identities=np.arange(48), image_classes=np.ones((2, len(IMAGE_CLASSES)), bool)
)
SETTINGS = {"image_px": SIDE, "augment": AugmentConfig(mosaic=0.7, mixup=0.3, degrees=5), "seed": 0, "label_spec": EVERYTHING}
SCENES = [scene(index, size_px=64) for index in range(IMAGES)]


def read(groups: Iterable[RowGroup]) -> Iterator[pa.Table]:
    for group in groups:
        yield to_table(SCENES[group.first_record : group.first_record + group.rows])


def plan(groups: RowGroups, seen: int = 0, rank: int = 0, world_size: int = 1) -> tuple[list[Window], Steps]:
    windows = epoch_windows(groups, records_per_window=PER_WINDOW, seed=0, epoch=1)
    return windows, plan_steps(windows, np.arange(groups.rows.sum()) < seen, rank=rank, world_size=world_size, batch=BATCH * world_size)


def contents(batch: Batch) -> list[tuple[str, bytes]]:
    return [(name, b"" if array is None else array.tobytes()) for name, array in vars(batch).items()]


def load(slices: list[EpochSlice], **options: bool) -> list[list[tuple[str, bytes]]]:
    """Make the batches of slices with two loaders in turns, from copies of the slices."""
    loaders = [Loader(read, decode_threads=1, **SETTINGS) for _ in range(2)]
    with closing(loaders[0]), closing(loaders[1]):
        copies = [pickle.loads(pickle.dumps(part)) for part in slices]
        made = [loaders[n % 2].epoch(part.windows, part.steps, **options) for n, part in enumerate(copies)]
        return [contents(batch) for batches in made for batch in batches]


@pytest.mark.parametrize("groups", [ONE_DATASET, TWO_DATASETS], ids=["one dataset", "union"])
@pytest.mark.parametrize("mosaic_closed", [False, True])
def test_the_batches_of_slices_are_those_of_the_epoch(groups: RowGroups, mosaic_closed: bool) -> None:
    windows, steps = plan(groups, seen=5)
    slices = list(cut_into_slices(windows, steps, PER_WINDOW))
    assert len(slices) >= 3
    with closing(Loader(read, decode_threads=1, **SETTINGS)) as loader:
        expected = [contents(batch) for batch in loader.epoch(windows, steps, mosaic_closed=mosaic_closed)]
    assert load(slices, mosaic_closed=mosaic_closed) == expected


@pytest.mark.parametrize("rank", [0, 1])
def test_slices_hold_each_step_once_in_order_and_only_the_windows_of_their_steps(rank: int) -> None:
    windows, steps = plan(TWO_DATASETS, rank=rank, world_size=2)
    slices = list(cut_into_slices(windows, steps, PER_WINDOW))
    assert [step.records.tolist() for part in slices for step in part.steps] == [step.records.tolist() for step in steps]
    for part in slices:
        assert part.windows.keys() == {w for step in part.steps for w in step.windows.tolist()}
        assert all(part.windows[w].groups == windows[w].groups for w in part.windows)


def test_a_slice_of_one_dataset_has_about_one_window() -> None:
    windows, steps = plan(ONE_DATASET)
    slices = list(cut_into_slices(windows, steps[1:], PER_WINDOW))
    assert len(slices) == len(windows)
    assert all(len(part.windows) <= 2 for part in slices)


def test_an_epoch_without_steps_has_no_slices() -> None:
    windows, steps = plan(ONE_DATASET)
    assert list(cut_into_slices(windows, steps[:0], PER_WINDOW)) == []


def test_a_slice_of_ten_million_records_is_a_small_message() -> None:
    groups = RowGroups([(0, f"part-{shard}", [64] * 100) for shard in range(1563)])
    windows = epoch_windows(groups, records_per_window=1024, seed=0, epoch=0)
    steps = plan_steps(windows, np.zeros(groups.rows.sum(), bool), rank=0, world_size=1, batch=16)
    part = next(cut_into_slices(windows, steps, 1024))
    assert len(part.steps) >= 64
    assert len(pickle.dumps(part)) < 100_000

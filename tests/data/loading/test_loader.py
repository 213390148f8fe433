"""Batches depend on seed, epoch and record alone, not on threads, caches, or the step at which a run was stopped."""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from yolor_ray.config import AugmentConfig
from yolor_ray.data.augment.tile import make_tile
from yolor_ray.data.loading import loader as loader_module
from yolor_ray.data.loading.batch import Batch
from yolor_ray.data.loading.epoch_plan import Steps, plan_steps
from yolor_ray.data.loading.epoch_windows import Window, epoch_windows
from yolor_ray.data.loading.loader import Loader, records_per_window
from yolor_ray.data.shards.arrow import to_table
from yolor_ray.data.shards.dataset import RowGroup
from yolor_ray.data.shards.records import Record
from yolor_ray.data.shards.row_groups import RowGroups
from yolor_ray.data.synthetic.scenes import scene
from yolor_ray.errors import ImageError

IMAGES, ROWS, SIDE = 23, 4, 64
AUGMENT = AugmentConfig(mosaic=0.7, mixup=0.3, degrees=5, flip_vertical=0.3)
GROUPS = RowGroups([(0, "part", [min(ROWS, IMAGES - first) for first in range(0, IMAGES, ROWS)])])


@pytest.fixture(scope="module")
def scenes_64() -> list[Record]:
    return [scene(index, size_px=64) for index in range(IMAGES)]


class Source:
    """A source in memory that records the row groups taken from it."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records
        self.taken: list[int] = []

    def __call__(self, groups: Iterable[RowGroup]) -> Iterator[pa.Table]:
        for group in groups:
            self.taken.append(group.index)
            yield to_table(self.records[group.first_record : group.first_record + group.rows])


def plan(rank: int = 0, world_size: int = 1, batch: int = 4, epoch: int = 0, seen: np.ndarray | None = None, per_window: int = 8):
    windows = epoch_windows(GROUPS, records_per_window=per_window, seed=0, epoch=epoch)
    nothing = np.zeros(IMAGES, bool)
    return windows, plan_steps(windows, nothing if seen is None else seen, rank=rank, world_size=world_size, batch=batch)


def copied(batch: Batch) -> Batch:
    return replace(batch, images=batch.images.copy())


def make_loader(source: Source, *, augment: AugmentConfig = AUGMENT, seed: int = 0, decode_threads: int = 1) -> Loader:
    return Loader(source, image_px=SIDE, augment=augment, seed=seed, decode_threads=decode_threads)


def epoch_of(
    records: list[Record],
    windows: list[Window],
    steps: Steps,
    *,
    decode_threads: int = 1,
    augment: AugmentConfig = AUGMENT,
    mosaic_closed: bool = False,
) -> list[Batch]:
    with closing(make_loader(Source(records), augment=augment, decode_threads=decode_threads)) as loader:
        return [copied(batch) for batch in loader.epoch(windows, steps, mosaic_closed=mosaic_closed)]


def assert_equal(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        for name in ("images", "positions", "labels", "boxes_xyxy"):
            left, right = getattr(a, name), getattr(b, name)
            assert (left.dtype, left.shape) == (right.dtype, right.shape)
            assert left.tobytes() == right.tobytes(), name


def test_batches_have_the_documented_shapes_and_types(scenes_64):
    windows, steps = plan()
    batches = epoch_of(scenes_64, windows, steps)
    assert [len(batch.images) for batch in batches] == [len(step.records) for step in steps]
    for batch in batches:
        assert batch.images.shape[1:] == (SIDE, SIDE, 3)
        dtypes = [values.dtype for values in (batch.images, batch.positions, batch.labels, batch.boxes_xyxy)]
        assert dtypes == [np.uint8, np.int64, np.int64, np.float32]
        assert len(batch.positions) == len(batch.labels) == len(batch.boxes_xyxy)
        assert ((batch.positions >= 0) & (batch.positions < len(batch.images))).all()
        assert (np.diff(batch.positions) >= 0).all()


def test_without_augmentation_each_record_comes_unchanged(scenes_64):
    windows, steps = plan()
    still = AugmentConfig(mosaic=0, translate=0, scale=0, hue=0, saturation=0, value=0, flip_horizontal=0)
    for step, batch in zip(steps, epoch_of(scenes_64, windows, steps, augment=still), strict=True):
        for position, record in enumerate(step.records):
            of_image = batch.positions == position
            tile = make_tile(scenes_64[record], SIDE)
            assert np.array_equal(batch.images[position], tile.image)
            assert np.array_equal(batch.boxes_xyxy[of_image], tile.annotations.boxes_xyxy)
            assert np.array_equal(batch.labels[of_image], tile.annotations.labels)


@pytest.mark.parametrize("decode_threads", [2, 5])
def test_batches_do_not_depend_on_the_number_of_threads(scenes_64, decode_threads):
    windows, steps = plan()
    assert_equal(epoch_of(scenes_64, windows, steps, decode_threads=decode_threads), epoch_of(scenes_64, windows, steps))


def test_batches_do_not_depend_on_the_tile_cache(scenes_64, monkeypatch):
    windows, steps = plan()
    expected = epoch_of(scenes_64, windows, steps)
    monkeypatch.setattr(loader_module, "TILE_CACHE_BYTES", 1)
    assert_equal(epoch_of(scenes_64, windows, steps, decode_threads=2), expected)


@pytest.mark.parametrize(("world_size", "batch"), [(1, 4), (2, 3), (2, 1), (3, 2)])
def test_a_resumed_epoch_equals_the_rest_of_an_uninterrupted_epoch(scenes_64, world_size, batch):
    for rank in range(world_size):
        windows, steps = plan(rank, world_size, batch)
        expected = epoch_of(scenes_64, windows, steps)
        for taken in (1, len(steps) // 2, len(steps) - 1):
            seen = np.zeros(IMAGES, bool)
            for worker in range(world_size):
                for step in plan(worker, world_size, batch)[1][:taken]:
                    seen[step.records] |= step.weight > 0
            _, remaining = plan(rank, world_size, batch, seen=seen)
            assert_equal(epoch_of(scenes_64, windows, remaining), expected[taken:])


@pytest.mark.parametrize("per_window", [4, 8, 100])
def test_a_worker_without_a_record_repeats_a_record_of_any_window(scenes_64, per_window):
    for world_size in (2, 3, 5, 30):
        for rank in range(world_size):
            windows, steps = plan(rank, world_size, batch=1, per_window=per_window)
            assert len(epoch_of(scenes_64, windows, steps)) == len(steps) == IMAGES


def test_another_epoch_or_seed_augments_the_same_records_differently(scenes_64):
    windows, steps = plan()
    images = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        with closing(make_loader(Source(scenes_64), seed=seed)) as loader:
            later = [replace(window, epoch=epoch) for window in windows]
            images.append(copied(next(iter(loader.epoch(later, steps[:1])))).images)
    assert not np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])


def test_equal_records_are_augmented_differently(scenes_64):
    windows, steps = plan()
    augment = AugmentConfig(mosaic=0, hue=0, saturation=0, value=0, flip_horizontal=0, translate=0.3)
    images = np.concatenate([batch.images for batch in epoch_of([scenes_64[0]] * IMAGES, windows, steps, augment=augment)])
    assert len({image.tobytes() for image in images}) == IMAGES


def test_an_epoch_with_mosaic_closed_has_no_mosaic_and_no_mixup(scenes_64):
    windows, steps = plan()
    off = replace(AUGMENT, mosaic=0, mixup=0)
    assert_equal(epoch_of(scenes_64, windows, steps, mosaic_closed=True), epoch_of(scenes_64, windows, steps, augment=off))


def test_one_loader_serves_many_epochs(scenes_64):
    with closing(make_loader(Source(scenes_64), decode_threads=2)) as loader:
        for epoch in range(3):
            windows, steps = plan(epoch=epoch)
            seen = sum(len(batch.images) for batch in loader.epoch(windows, steps))
            assert seen == IMAGES


def test_only_the_needed_row_groups_are_read_each_once(scenes_64):
    source = Source(scenes_64)
    windows, steps = plan(rank=0, world_size=2)
    with closing(make_loader(source)) as loader:
        for _ in loader.epoch(windows, steps):
            pass
    needed = [group.index for w in dict.fromkeys(int(w) for step in steps for w in step.windows) for group in windows[w].groups]
    assert source.taken == needed
    assert len(needed) < len(GROUPS)


@pytest.mark.parametrize("sizes", [[60], [30, 30], [50, 10]])
def test_windows_are_dropped_when_their_dataset_has_gone_on(monkeypatch, scenes_64, sizes):
    groups = RowGroups((member, "part", [4] * (size // 4) + [size % 4] * (size % 4 > 0)) for member, size in enumerate(sizes))
    windows = epoch_windows(groups, records_per_window=8 * len(sizes), seed=0, epoch=0)
    steps = plan_steps(windows, np.zeros(60, bool), rank=0, world_size=1, batch=4)
    read: list[weakref.ref] = []

    class Window(dict):
        pass

    def read_window(*arguments):
        window = Window(loader_module_read(*arguments))
        read.append(weakref.ref(window))
        return window

    loader_module_read = loader_module._read_window
    monkeypatch.setattr(loader_module, "_read_window", read_window)
    with closing(make_loader(Source([*scenes_64, *scenes_64, *scenes_64]))) as loader:
        for _ in loader.epoch(windows, steps):
            held = [number for number, window in enumerate(read) if window() is not None]
            assert len(held) <= 2 * len(sizes) + 2
    assert len(read) == len(windows) >= 6


def test_a_batch_stays_intact_until_the_next_batch_is_taken(scenes_64):
    windows, steps = plan(batch=2)
    with closing(make_loader(Source(scenes_64), decode_threads=2)) as loader:
        batches = loader.epoch(windows, steps)
        previous = next(batches)
        copy = previous.images.copy()
        for batch in batches:
            assert np.array_equal(previous.images, copy)
            previous, copy = batch, batch.images.copy()


def test_an_empty_epoch_has_no_batches(scenes_64):
    windows, steps = plan()
    assert epoch_of(scenes_64, windows, steps[:0]) == []


def test_a_damaged_image_ends_the_epoch_with_an_error_that_names_its_record(scenes_64):
    broken = [replace(record, image=b"\xff\xd8\xff\xe0 no picture") if n == 5 else record for n, record in enumerate(scenes_64)]
    windows, steps = plan()
    with pytest.raises(ImageError, match=broken[5].name):
        epoch_of(broken, windows, steps)


@pytest.mark.parametrize(("image_px", "records"), [(320, 1024), (640, 436), (1280, 109), (4096, 64)])
def test_a_window_holds_as_many_records_as_fit_the_tile_cache(image_px, records):
    assert records_per_window(image_px) == records

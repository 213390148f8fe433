"""Batches say of each of their images what is wanted, with the objects' numbers in the batch."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from coded import OBJECTS, cells_seen, coded_record
from yolor_ray.config import AugmentConfig
from yolor_ray.data.augment.label_spec import LabelSpec
from yolor_ray.data.loading.epoch_plan import epoch_windows, steps_of
from yolor_ray.data.loading.loader import Batch, Loader, records_per_window
from yolor_ray.data.shards.arrow import table
from yolor_ray.data.shards.dataset import RowGroup
from yolor_ray.data.shards.records import Record
from yolor_ray.data.synthetic.scenes import IMAGE_CLASSES, KEYPOINT_NAMES, scene

IMAGES, ROWS, SIDE = 11, 4, 64
GROUPS = [RowGroup("part", n, first, min(ROWS, IMAGES - first), member=n % 2) for n, first in enumerate(range(0, IMAGES, ROWS))]
STILL = AugmentConfig(mosaic=0, translate=0, scale=0, hue=0, saturation=0, value=0, flip_horizontal=0)
MOVING = AugmentConfig(mosaic=0.5, mixup=0.3, degrees=20, flip_vertical=0.3, hue=0, saturation=0, value=0)
KNOWS = np.array([[True] * len(IMAGE_CLASSES), [False] * len(IMAGE_CLASSES)])
EVERYTHING = LabelSpec(masks=True, keypoint_names=KEYPOINT_NAMES, identities=np.arange(0, 48, 2), image_classes=KNOWS)
ARRAYS = ("positions", "labels", "boxes_xyxy", "boxes_known", "keypoints", "identities", "has_mask", "instances", "image_labels")


@pytest.fixture(scope="module")
def scenes_64() -> list[Record]:
    """Scenes of two data sets, row group by row group; the second one and record 2 know nothing of image labels."""
    found = [scene(index, size_px=64) for index in range(IMAGES)]
    found[2] = replace(found[2], tasks=("detect", "embed", "pose", "segment"))
    unlabelled = np.zeros(0, np.int64)
    return [replace(record, image_labels=unlabelled) if GROUPS[n // ROWS].member else record for n, record in enumerate(found)]


def batches(records: list[Record], augment: AugmentConfig, wanted: LabelSpec, *, threads: int = 1) -> list[tuple[np.ndarray, Batch]]:
    """Return the record numbers and the content of each batch of an epoch."""

    def source(groups: Sequence[RowGroup]) -> Iterator[pa.Table]:
        for group in groups:
            yield table(records[group.first_record : group.first_record + group.rows])

    windows = epoch_windows(GROUPS, records_per_window=ROWS, seed=0, epoch=0)
    steps = steps_of(windows, np.zeros(IMAGES, bool), rank=0, world_size=1, batch=4)
    with closing(Loader(source, image_px=SIDE, augment=augment, seed=0, threads=threads, wanted=wanted)) as loader:
        found = [replace(batch, images=batch.images.copy()) for batch in loader.epoch(windows, steps, epoch=0)]
    return [(step.records, batch) for step, batch in zip(steps, found, strict=True)]


def test_what_is_not_wanted_is_none(scenes_64):
    for records, batch in batches(scenes_64, MOVING, LabelSpec()):
        assert [getattr(batch, name) for name in ARRAYS[4:]] == [None] * 5
        assert batch.boxes_known.tolist() == [True] * len(records)


def test_a_batch_has_the_promised_shapes_and_types(scenes_64):
    for records, batch in batches(scenes_64, MOVING, EVERYTHING):
        count = len(batch.labels)
        found = {name: (getattr(batch, name).shape, getattr(batch, name).dtype) for name in ARRAYS[3:]}
        assert found == {
            "boxes_known": ((len(records),), np.bool_),
            "keypoints": ((count, len(KEYPOINT_NAMES), 3), np.float32),
            "identities": ((count,), np.int64),
            "has_mask": ((count,), np.bool_),
            "instances": ((len(records), SIDE, SIDE), np.int32),
            "image_labels": ((len(records), len(IMAGE_CLASSES)), np.float32),
        }


def test_without_variation_each_record_says_what_it_knows(scenes_64):
    for records, batch in batches(scenes_64, STILL, EVERYTHING):
        for position, number in enumerate(records.tolist()):
            record, mine = scenes_64[number], batch.positions == position
            assert np.array_equal(batch.keypoints[mine], record.objects.keypoints)
            halves = record.objects.identities // 2
            assert np.array_equal(batch.identities[mine], np.where(record.objects.identities % 2 == 0, halves, -1))
            is_known = GROUPS[number // ROWS].member == 0 and number != 2
            one_hot = np.isin(np.arange(len(IMAGE_CLASSES)), record.image_labels)
            assert np.array_equal(batch.image_labels[position], one_hot if is_known else np.full(len(one_hot), np.nan), equal_nan=True)


def test_instances_are_numbered_by_the_objects_of_the_batch():
    records = [coded_record(number, 64, 64) for number in range(IMAGES)]
    compared = 0
    for _, batch in batches(records, replace(MOVING, mixup=0), LabelSpec(masks=True)):
        for position, image in enumerate(batch.images):
            numbers = batch.instances[position]
            mine = np.flatnonzero(batch.positions == position)
            assert set(np.unique(numbers[numbers > 0]) - 1) == set(mine[batch.has_mask[mine]])
            sure, seen = cells_seen(image, np.arange(IMAGES * OBJECTS))
            found = np.append(-1, batch.labels)[numbers]
            # A mosaic may hold a record twice, one of them too small to be learned.
            assert (found[sure & (numbers > 0)] == seen[sure & (numbers > 0)]).all()
            compared += (sure & (numbers > 0)).sum()
    assert compared > 300


@pytest.mark.parametrize("threads", [2, 4])
def test_batches_are_equal_whatever_the_number_of_threads(scenes_64, threads):
    alone, together = (batches(scenes_64, MOVING, EVERYTHING, threads=n) for n in (1, threads))
    for (_, expected), (_, found) in zip(alone, together, strict=True):
        for name in ("images", *ARRAYS):
            assert getattr(found, name).tobytes() == getattr(expected, name).tobytes(), name


def test_wishes_change_no_picture_and_no_box(scenes_64):
    plain, full = (batches(scenes_64, MOVING, wanted) for wanted in (LabelSpec(), EVERYTHING))
    for (_, expected), (_, found) in zip(plain, full, strict=True):
        for name in ("images", *ARRAYS[:4]):
            assert getattr(found, name).tobytes() == getattr(expected, name).tobytes(), name


def test_windows_leave_room_for_maps():
    assert records_per_window(640) == 436
    assert records_per_window(640, LabelSpec(masks=True)) == 262

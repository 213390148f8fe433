"""Batches carry the annotations of their label spec, with instance maps numbered by the objects of the batch."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from coded import OBJECTS, coded_record, visible_labels
from yolor_ray.config import AugmentConfig
from yolor_ray.data.augment.label_spec import LabelSpec
from yolor_ray.data.loading.batch import Batch
from yolor_ray.data.loading.epoch_plan import plan_steps
from yolor_ray.data.loading.epoch_windows import epoch_windows
from yolor_ray.data.loading.loader import Loader, records_per_window
from yolor_ray.data.shards.arrow import to_table
from yolor_ray.data.shards.dataset import RowGroup
from yolor_ray.data.shards.records import Record
from yolor_ray.data.shards.row_groups import RowGroups
from yolor_ray.data.synthetic.scenes import IMAGE_CLASSES, KEYPOINT_NAMES, scene

IMAGES, ROWS, SIDE = 11, 4, 64
GROUPS = RowGroups((n % 2, "part", [min(ROWS, IMAGES - first)]) for n, first in enumerate(range(0, IMAGES, ROWS)))
STILL = AugmentConfig(mosaic=0, translate=0, scale=0, hue=0, saturation=0, value=0, flip_horizontal=0)
MOVING = AugmentConfig(mosaic=0.5, mixup=0.3, degrees=20, flip_vertical=0.3, hue=0, saturation=0, value=0)
ANNOTATED = np.array([[True] * len(IMAGE_CLASSES), [False] * len(IMAGE_CLASSES)])
KNOWN = np.array([[True, False, True], [True, True, False]])
EVERYTHING = LabelSpec(
    masks=True, keypoint_names=KEYPOINT_NAMES, identities=np.arange(0, 48, 2), object_classes=KNOWN, image_classes=ANNOTATED
)
ARRAYS = (
    "positions",
    "labels",
    "boxes_xyxy",
    "boxes_known",
    "classes_known",
    "keypoints",
    "identities",
    "has_mask",
    "instances",
    "image_labels",
)


@pytest.fixture(scope="module")
def scenes_64() -> list[Record]:
    """Scenes of two datasets, in alternating row groups; the second dataset and record 2 have no image labels."""
    records = [scene(index, size_px=64) for index in range(IMAGES)]
    records[2] = replace(records[2], tasks=("detect", "embed", "pose", "segment"))
    unlabelled = np.zeros(0, np.int64)
    return [replace(record, image_labels=unlabelled) if GROUPS[n // ROWS].member else record for n, record in enumerate(records)]


def batches(
    records: list[Record], augment: AugmentConfig, label_spec: LabelSpec, *, decode_threads: int = 1
) -> list[tuple[np.ndarray, Batch]]:
    """Return the record numbers and the content of each batch of an epoch."""

    def source(groups: Iterable[RowGroup]) -> Iterator[pa.Table]:
        for group in groups:
            yield to_table(records[group.first_record : group.first_record + group.rows])

    windows = epoch_windows(GROUPS, records_per_window=ROWS, seed=0, epoch=0)
    steps = plan_steps(windows, np.zeros(IMAGES, bool), rank=0, world_size=1, batch=4)
    loader = Loader(source, image_px=SIDE, augment=augment, seed=0, decode_threads=decode_threads, label_spec=label_spec)
    with closing(loader):
        contents = [replace(batch, images=batch.images.copy()) for batch in loader.epoch(windows, steps)]
    return [(step.records, batch) for step, batch in zip(steps, contents, strict=True)]


def test_annotations_outside_the_label_spec_are_none(scenes_64):
    for records, batch in batches(scenes_64, MOVING, LabelSpec()):
        assert [getattr(batch, name) for name in ARRAYS[4:]] == [None] * 6
        assert batch.boxes_known.tolist() == [True] * len(records)


def test_a_batch_has_the_documented_shapes_and_types(scenes_64):
    for records, batch in batches(scenes_64, MOVING, EVERYTHING):
        count = len(batch.labels)
        shapes = {name: (getattr(batch, name).shape, getattr(batch, name).dtype) for name in ARRAYS[3:]}
        assert shapes == {
            "boxes_known": ((len(records),), np.bool_),
            "classes_known": ((len(records), 3), np.bool_),
            "keypoints": ((count, len(KEYPOINT_NAMES), 3), np.float32),
            "identities": ((count,), np.int64),
            "has_mask": ((count,), np.bool_),
            "instances": ((len(records), SIDE, SIDE), np.int32),
            "image_labels": ((len(records), len(IMAGE_CLASSES)), np.float32),
        }


def test_without_augmentation_a_batch_holds_the_annotations_of_its_records(scenes_64):
    for records, batch in batches(scenes_64, STILL, EVERYTHING):
        for position, number in enumerate(records.tolist()):
            record, of_image = scenes_64[number], batch.positions == position
            assert np.array_equal(batch.keypoints[of_image], record.objects.keypoints)
            halves = record.objects.identities // 2
            assert np.array_equal(batch.identities[of_image], np.where(record.objects.identities % 2 == 0, halves, -1))
            is_known = GROUPS[number // ROWS].member == 0 and number != 2
            one_hot = np.isin(np.arange(len(IMAGE_CLASSES)), record.image_labels)
            assert np.array_equal(batch.image_labels[position], one_hot if is_known else np.full(len(one_hot), np.nan), equal_nan=True)


def test_instances_are_numbered_by_the_objects_of_the_batch():
    records = [coded_record(number, 64, 64) for number in range(IMAGES)]
    compared = 0
    for _, batch in batches(records, replace(MOVING, mixup=0), LabelSpec(masks=True)):
        for position, image in enumerate(batch.images):
            numbers = batch.instances[position]
            of_image = np.flatnonzero(batch.positions == position)
            assert set(np.unique(numbers[numbers > 0]) - 1) == set(of_image[batch.has_mask[of_image]])
            sure, seen = visible_labels(image, np.arange(IMAGES * OBJECTS))
            labels = np.append(-1, batch.labels)[numbers]
            # A mosaic may hold a record twice, once too small to be learned; pixels outside the map therefore prove nothing.
            assert (labels[sure & (numbers > 0)] == seen[sure & (numbers > 0)]).all()
            compared += (sure & (numbers > 0)).sum()
    assert compared > 300


@pytest.mark.parametrize("decode_threads", [2, 4])
def test_batches_do_not_depend_on_the_number_of_threads(scenes_64, decode_threads):
    by_one, by_many = (batches(scenes_64, MOVING, EVERYTHING, decode_threads=count) for count in (1, decode_threads))
    for (_, expected), (_, found) in zip(by_one, by_many, strict=True):
        for name in ("images", *ARRAYS):
            assert getattr(found, name).tobytes() == getattr(expected, name).tobytes(), name


def test_the_label_spec_changes_no_pixel_and_no_box(scenes_64):
    boxes_only, full = (batches(scenes_64, MOVING, label_spec) for label_spec in (LabelSpec(), EVERYTHING))
    for (_, expected), (_, found) in zip(boxes_only, full, strict=True):
        for name in ("images", *ARRAYS[:4]):
            assert getattr(found, name).tobytes() == getattr(expected, name).tobytes(), name


def test_windows_are_smaller_with_instance_maps():
    assert records_per_window(640) == 436
    assert records_per_window(640, LabelSpec(masks=True)) == 262


@pytest.mark.parametrize("augment", [STILL, MOVING], ids=["still", "moving"])
def test_the_known_classes_of_an_image_are_those_of_its_dataset(scenes_64, augment):
    for records, batch in batches(scenes_64, augment, EVERYTHING):
        members = [GROUPS[record // ROWS].member for record in records]
        assert np.array_equal(batch.classes_known, KNOWN[members])

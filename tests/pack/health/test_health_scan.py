"""Measurements of a dataset do not depend on the division of its row groups among tasks."""

import dataclasses

import numpy as np
import pytest

from packed import all_records
from yolor_ray.pack.health import scan
from yolor_ray.pack.health.scan import Scan, join_scans, scan_row_groups, shares


def assert_equal(first: Scan, second: Scan) -> None:
    for field in dataclasses.fields(Scan):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name), err_msg=field.name)


def test_a_small_dataset_is_one_task_whatever_its_shards(squares):
    assert shares(squares) == [tuple(squares.row_groups)]


@pytest.mark.parametrize(("limit", "value", "tasks"), [("IMAGES_PER_TASK", 64, 2), ("IMAGES_PER_TASK", 1, 3), ("BYTES_PER_TASK", 1, 3)])
def test_tasks_cover_all_row_groups_in_order_and_join_to_the_whole(squares, monkeypatch, limit, value, tasks):
    whole = scan_row_groups(squares, squares.row_groups)
    monkeypatch.setattr(scan, limit, value)
    divided = shares(squares)
    assert len(divided) == tasks
    assert tuple(group for share in divided for group in share) == tuple(squares.row_groups)
    assert_equal(join_scans([scan_row_groups(squares, share) for share in divided]), whole)


def test_objects_belong_to_their_images(rich):
    records = all_records(rich.url)
    measured = scan_row_groups(rich, rich.row_groups)
    assert measured.names == tuple(record.name for record in records)
    assert measured.image_of_object.tolist() == [n for n, record in enumerate(records) for _ in record.objects.labels]
    np.testing.assert_array_equal(measured.boxes_xyxy, np.concatenate([record.objects.boxes_xyxy for record in records]))
    labelled = [n for n, record in enumerate(records) for _ in record.image_labels]
    assert measured.image_of_label.tolist() == labelled


def test_sides_are_those_in_the_letterbox(rich):
    measured = scan_row_groups(rich, rich.row_groups)
    record = all_records(rich.url)[1]
    width, height = record.objects.boxes_xyxy[0, 2:] - record.objects.boxes_xyxy[0, :2]
    np.testing.assert_allclose(measured.scaled_sides(200)[1], [width * 200 / 100, height * 200 / 100])

"""Crowd regions are not learned: anchors are not fitted to them, and a training set without another box is refused."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest

from packed import pack, square_record
from tiny_run import tiny_run
from yolor_ray.data.shards.dataset import Dataset
from yolor_ray.data.shards.records import Objects, Record
from yolor_ray.errors import DataError
from yolor_ray.train.anchors import fit_anchors
from yolor_ray.train.datasets.boxes import read_box_sides
from yolor_ray.train.run import prepare


def record(index: int, *boxes: tuple[float, float, float, float], crowd: bool = False) -> Record:
    count = len(boxes)
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    objects = Objects(corners, np.ones(count, np.int64), np.full(count, crowd), np.ones(count, np.float32))
    return dataclasses.replace(square_record(4 * index), objects=objects)


def prepared(folder: Path, *records: Record) -> np.ndarray:
    """Return the anchors (L, A, 2) for a training set of these records, at 64 px for images of 64 x 48 px."""
    dataset: Dataset = pack(str(folder / "data"), [list(records)])
    config = tiny_run(folder, "run")
    data = dataclasses.replace(config.data, train=dataset.url, val=dataset.url)
    return prepare(dataclasses.replace(config, data=data), str(folder / "run")).anchors


def test_anchors_are_not_fitted_to_crowd_regions(tmp_path: Path) -> None:
    single = [record(index, (5, 5, 15, 13)) for index in range(3)]
    crowds = [record(index, (0, 0, 60, 45), crowd=True) for index in range(3, 9)]
    expected = prepared(tmp_path / "single", *single)
    assert prepared(tmp_path / "both", *single, *crowds) == pytest.approx(expected)


def test_sides_are_those_of_single_objects_at_the_size_of_the_network_input(tmp_path: Path) -> None:
    boxes = np.array([[5, 5, 15, 13], [0, 0, 60, 45], [1, 2, 4, 8]], np.float32)
    mixed = Objects(boxes, np.ones(3, np.int64), np.array([False, True, False]), np.ones(3, np.float32))
    tall = dataclasses.replace(square_record(1), objects=record(0, (3, 3, 13, 28)).objects)
    unknown = dataclasses.replace(record(2), name="unknown.png", tasks=("classify",))
    records = [dataclasses.replace(square_record(0), objects=mixed), tall, unknown, record(3), record(4, (2, 2, 6, 6))]
    dataset = pack(str(tmp_path), [records[:3], records[3:]])
    for most_boxes in (None, 100):
        sides, without_boxes = read_box_sides(dataset, image_px=128, most_boxes=most_boxes)
        assert sides.tolist() == pytest.approx(np.array([[20, 16], [6, 12], [12.8, 32], [8, 8]])) and sides.dtype == np.float32
        assert without_boxes == 1


@pytest.mark.parametrize(("width", "groups_read"), [(10, 4), (1, 12)], ids=["visible", "too small"])
def test_a_sample_of_boxes_reads_row_groups_until_it_is_large_and_a_box_can_be_seen(tmp_path: Path, width: int, groups_read: int) -> None:
    dataset = pack(str(tmp_path), [[record(index, (5, 5, 5 + width, 13))] for index in range(12)])
    sides, _ = read_box_sides(dataset, image_px=64, most_boxes=4)
    assert len(sides) == groups_read
    assert len(read_box_sides(dataset, image_px=64, most_boxes=None)[0]) == 12


def test_anchors_are_fitted_to_a_sample_of_many_boxes(tmp_path: Path, monkeypatch, caplog) -> None:
    fitted = []
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("yolor_ray.train.anchors.MAX_BOXES", 4)
    monkeypatch.setattr(
        "yolor_ray.train.run.fit_anchors", lambda sides, *rest, **options: fitted.append(sides) or fit_anchors(sides, *rest, **options)
    )
    prepared(tmp_path, *(record(index, (5, 5, 15 + index, 13)) for index in range(9)))
    assert [len(sides) for sides in fitted] == [4] and "boxes=9" in caplog.text


@pytest.mark.parametrize(
    ("records", "found"),
    [
        ([record(0, (5, 5, 25, 25), crowd=True), record(1, (5, 5, 9, 9), crowd=True)], "found 2 boxes, all of them crowd regions"),
        ([record(0), record(1)], "found no box on 2 images"),
    ],
    ids=["crowds", "backgrounds"],
)
def test_training_data_without_a_box_to_learn_is_refused(tmp_path: Path, records: list[Record], found: str) -> None:
    with pytest.raises(DataError, match=f"{found}, expected boxes of single objects to train on"):
        prepared(tmp_path, *records)


@pytest.mark.parametrize(("side", "warns"), [(1.5, True), (2.5, False)])
def test_boxes_that_are_all_below_two_pixels_are_warned_of(tmp_path: Path, caplog, side: float, warns: bool) -> None:
    prepared(tmp_path, record(0, (5, 5, 5 + side, 5 + side)))
    assert ("event=boxes_too_small boxes=1 image_px=64" in caplog.text) == warns

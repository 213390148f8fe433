import json
import threading

import numpy as np
import pytest
import torch

from yolor_ray.data.records import Objects, Record
from yolor_ray.data.shards import read_row_group
from yolor_ray.errors import DataError, ImageError
from yolor_ray.evaluate import coco, predictions
from yolor_ray.evaluate.detections import from_parquet
from yolor_ray.evaluate.predictions import check_classes, images_of, merge, pictures, predict_groups, shares, truth_of
from yolor_ray.evaluate.report import report_files
from yolor_ray.model.predict import Detections


def _find_white(images, *, confidence, iou, max_detections):
    """Stand in for a perfect network: the white rectangle of each input, in pixels of the input."""
    found = []
    for image in images.numpy():
        white = (image > 127).all(axis=2)
        rows, columns = np.flatnonzero(white.any(axis=1)), np.flatnonzero(white.any(axis=0))
        box = torch.tensor([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], dtype=torch.float32)
        found.append(Detections(box, torch.tensor([0.9]), torch.tensor([1])))
    return found


def test_a_perfect_network_scores_one_on_images_of_all_shapes(squares):
    rows = merge([dict(predict_groups(_find_white, squares, squares.row_groups, 320, 16))], squares.images)
    found = coco.score(truth_of(squares), rows)
    assert found["AP"] > 0.99 and found["AP50"] == pytest.approx(1)


def test_rows_are_the_same_however_row_groups_are_shared_out(squares):
    def rows(workers):
        parts = [dict(predict_groups(_find_white, squares, share, 64, 16)) for share in shares(squares.row_groups, workers)]
        return merge(parts, squares.images)

    assert rows(1) == rows(2) == rows(3) == rows(5)


def test_every_image_comes_once_in_batches_that_end_with_their_row_group(squares):
    batches = list(images_of(squares, squares.row_groups, 64, 16, threads=2))
    assert [len(batch.images) for batch in batches] == [16, 16, 16, 16, 6, 16, 14]
    assert [batch.first_id for batch in batches] == [0, 16, 32, 48, 64, 70, 86]
    assert [record.name for batch in batches for record in batch.records] == [f"{index:04d}.png" for index in range(100)]
    assert all(batch.images.shape[1:] == (64, 64, 3) and batch.images.dtype == np.uint8 for batch in batches)


def test_decode_threads_end_when_the_consumer_stops_early(squares):
    before = threading.active_count()
    batches = images_of(squares, squares.row_groups, 64, 4)
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


def test_shares_hold_every_row_group_once_and_are_even(squares):
    groups = squares.row_groups
    dealt = shares(groups, 2)
    assert sorted((g for share in dealt for g in share), key=lambda g: g.first_record) == list(groups)
    assert [sum(g.rows for g in share) for share in dealt] == [64, 36]
    assert [len(share) for share in shares(groups, 5)] == [1, 1, 1, 0, 0]


def test_merging_refuses_missing_and_repeated_images():
    with pytest.raises(AssertionError, match="1 predictions of 1 images, 2 expected"):
        merge([{0: []}], 2)
    with pytest.raises(AssertionError, match="3 predictions of 2 images, 2 expected"):
        merge([{0: [], 1: []}, {1: []}], 2)


def test_truth_holds_the_annotations_and_reads_no_image(squares, monkeypatch):
    read = []

    def noting(url, group, columns=None):
        read.append(columns)
        return read_row_group(url, group, columns)

    monkeypatch.setattr(predictions, "read_row_group", noting)
    truth = truth_of(squares)
    assert len(read) == 3 and all("image" not in columns for columns in read)
    assert [image["id"] for image in truth["images"]] == list(range(100))
    assert (truth["images"][2]["width"], truth["images"][2]["height"]) == (130, 70)
    assert truth["annotations"][2]["bbox"] == [6, 5, 130 - 8 - 6, 70 - 11 - 5]
    assert truth["categories"] == [{"id": 0, "name": "nothing"}, {"id": 1, "name": "square"}]


def test_other_classes_than_those_of_the_weights_are_refused(squares):
    check_classes(("nothing", "square"), "w", squares)
    with pytest.raises(DataError, match="found classes nothing, square; expected those of w, in its order: square, nothing"):
        check_classes(("square", "nothing"), "w", squares)


def test_an_image_that_cannot_be_decoded_is_named(squares, monkeypatch):
    empty = Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0, np.float32))
    monkeypatch.setattr(predictions, "records", lambda table: [Record("cut.png", b"\x89PNG", 5, 5, empty)] * len(table))
    with pytest.raises(ImageError, match=r"squares.*, image 'cut.png': "):
        list(images_of(squares, squares.row_groups, 64, 16))


def test_pictures_come_from_all_over_the_data_set_with_confident_detections_only(squares):
    rows = merge([dict(predict_groups(_find_white, squares, squares.row_groups, 320, 16))], squares.images)
    faint = [row | {"score": 0.01} for row in rows]
    measured = coco.measure(truth_of(squares), rows + faint)
    shown = pictures(squares, rows + faint, measured, count=5)
    assert len(shown) == 5
    assert [picture.image.shape[:2] for picture in shown] == [(48, 64), (100, 40), (70, 130), (70, 130), (33, 33)]
    for picture in shown:
        assert picture.confidences.tolist() == pytest.approx([0.9])
        assert np.abs(picture.boxes_xyxy - picture.truth.boxes_xyxy).max() < 1


def test_a_report_holds_numbers_detections_and_two_pictures(squares):
    rows = merge([dict(predict_groups(_find_white, squares, squares.row_groups, 320, 16))], squares.images)
    measured = coco.measure(truth_of(squares), rows)
    files = report_files(measured, rows, pictures(squares, rows, measured, count=2), {"images": 100, "data": "somewhere"})
    assert sorted(files) == ["detections.parquet", "metrics.json", "precision_recall.png", "predictions.png"]
    assert from_parquet(files["detections.parquet"]) == rows
    numbers = json.loads(files["metrics.json"])
    assert numbers["AP50"] == pytest.approx(1) and numbers["data"] == "somewhere"
    assert numbers["classes"]["nothing"] == {"AP": None, "AP50": None, "objects": 0, "confidence": None}
    assert numbers["classes"]["square"]["objects"] == 100
    assert all(files[name].startswith(b"\x89PNG") for name in ("precision_recall.png", "predictions.png"))

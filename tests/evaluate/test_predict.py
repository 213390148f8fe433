import json
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask as run_length

from yolor_ray.data.shards.dataset import read_row_group
from yolor_ray.data.shards.records import Objects, Record
from yolor_ray.errors import ImageError
from yolor_ray.evaluate import coco, predict
from yolor_ray.evaluate.detections import from_parquet
from yolor_ray.evaluate.examples import select_examples
from yolor_ray.evaluate.metrics import measure
from yolor_ray.evaluate.predict import merge_detections, predict_row_groups, read_annotations, read_truth, split_row_groups
from yolor_ray.evaluate.report import report_files
from yolor_ray.inference import dataset_images
from yolor_ray.inference.dataset_images import image_batches
from yolor_ray.inference.detect import Detections
from yolor_ray.inference.postprocess import ImageDetections


def _detect_white(images, *, confidence, iou, max_detections):
    """Test double of a perfect network, which detects the white rectangle of each input."""
    detections = []
    for image in images.numpy():
        white = (image > 127).all(axis=2)
        rows, columns = np.flatnonzero(white.any(axis=1)), np.flatnonzero(white.any(axis=0))
        box = torch.tensor([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], dtype=torch.float32)
        detections.append(Detections(box, torch.tensor([0.9]), torch.tensor([1])))
    return detections


@pytest.fixture(scope="module")
def perfect(squares):
    return merge_detections([dict(predict_row_groups(_detect_white, squares, squares.row_groups, 320, 16))], squares.images)


def test_a_perfect_network_scores_one_on_images_of_all_shapes(squares, perfect):
    metrics = measure(squares, perfect, ("detect",)).metrics
    assert metrics["AP"] > 0.99 and metrics["AP50"] == pytest.approx(1)


def test_detections_do_not_depend_on_the_distribution_of_row_groups(squares):
    def boxes(workers):
        parts = [dict(predict_row_groups(_detect_white, squares, share, 64, 16)) for share in split_row_groups(squares.row_groups, workers)]
        return [detections.boxes_xyxy.tolist() for detections in merge_detections(parts, squares.images)]

    assert boxes(1) == boxes(2) == boxes(3) == boxes(5)


def test_batches_hold_every_image_once_and_never_cross_a_row_group(squares):
    batches = list(image_batches(squares, squares.row_groups, 64, 16, decode_threads=2))
    assert [len(batch.images) for batch in batches] == [16, 16, 16, 16, 6, 16, 14]
    assert [batch.first_id for batch in batches] == [0, 16, 32, 48, 64, 70, 86]
    assert [record.name for batch in batches for record in batch.records] == [f"{index:04d}.png" for index in range(100)]
    assert all(batch.images.shape[1:] == (64, 64, 3) and batch.images.dtype == np.uint8 for batch in batches)


def test_decode_threads_end_when_the_consumer_stops_early(squares):
    before = threading.active_count()
    batches = image_batches(squares, squares.row_groups, 64, 4)
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


def test_every_row_group_goes_to_one_worker_and_rows_are_even(squares):
    groups = squares.row_groups
    shares = split_row_groups(groups, 2)
    assert sorted((group for share in shares for group in share), key=lambda group: group.first_record) == list(groups)
    assert [sum(group.rows for group in share) for share in shares] == [64, 36]
    assert [len(share) for share in split_row_groups(groups, 5)] == [1, 1, 1, 0, 0]


def test_merging_refuses_missing_and_repeated_images():
    nothing = ImageDetections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
    with pytest.raises(AssertionError, match="found 1 predictions of 1 images, expected one for each of 2 images"):
        merge_detections([{0: nothing}], 2)
    with pytest.raises(AssertionError, match="found 3 predictions of 2 images, expected one for each of 2 images"):
        merge_detections([{0: nothing, 1: nothing}, {1: nothing}], 2)


def test_truth_holds_the_annotations_and_reads_no_image(squares, monkeypatch):
    reads = []

    def recording(dataset, group, columns=None):
        reads.append(columns)
        return read_row_group(dataset, group, columns)

    monkeypatch.setattr(predict, "read_row_group", recording)
    truth = read_truth(squares)
    assert len(reads) == 3 and all("image" not in columns for columns in reads)
    assert [image["id"] for image in truth["images"]] == list(range(100))
    assert (truth["images"][2]["width"], truth["images"][2]["height"]) == (130, 70)
    assert truth["annotations"][2]["bbox"] == [6, 5, 130 - 8 - 6, 70 - 11 - 5]
    assert truth["categories"] == [{"id": 0, "name": "nothing"}, {"id": 1, "name": "square"}]


def test_an_image_that_cannot_be_decoded_is_named(squares, monkeypatch):
    empty = Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0, np.float32))
    monkeypatch.setattr(dataset_images, "to_records", lambda table: [Record("cut.png", b"\x89PNG", 5, 5, empty)] * len(table))
    with pytest.raises(ImageError, match=r"squares.*, image 'cut.png': "):
        list(image_batches(squares, squares.row_groups, 64, 16))


def test_examples_are_spread_over_the_dataset_and_show_confident_detections(squares, perfect):
    faint = [
        replace(detections, boxes_xyxy=detections.boxes_xyxy.repeat(2, axis=0), confidences=np.array([0.9, 0.01]), labels=np.array([1, 1]))
        for detections in perfect
    ]
    examples = select_examples(squares, faint, measure(squares, faint, ("detect",)).boxes, count=5)
    assert len(examples) == 5
    assert [example.image.shape[:2] for example in examples] == [(48, 64), (100, 40), (70, 130), (70, 130), (33, 33)]
    for example in examples:
        assert example.detections.confidences.tolist() == pytest.approx([0.9])
        assert np.abs(example.detections.boxes_xyxy - example.truth.boxes_xyxy).max() < 1


def test_captions_hold_the_labels_of_the_whole_image(rich):
    box = ImageDetections(np.array([[0.0, 0, 9, 9]]), np.array([0.9]), np.array([1]), image_labels=np.array([0.25, 0.75]))
    detections = [replace(box, image_labels=np.array([0.1, 0.2])) if index == 23 else box for index in range(24)]
    boxes = measure(rich, detections, ("detect",)).boxes
    assert [example.caption for example in select_examples(rich, detections, boxes, count=2)] == ["wide 0.75", "no label (annotated: tall)"]


def test_a_report_holds_metrics_detections_curves_and_examples(squares, perfect):
    result = measure(squares, perfect, ("detect",))
    files = report_files(result, select_examples(squares, perfect, result.boxes, count=2), {"images": 100, "data": "somewhere"})
    assert sorted(files) == ["detections.parquet", "metrics.json", "predictions.png"]
    rows = [row for index, detections in enumerate(perfect) for row in coco.make_result_rows(index, detections, 1, 1)]
    assert from_parquet(files["detections.parquet"]) == rows
    numbers = json.loads(files["metrics.json"])
    assert numbers["AP50"] == pytest.approx(1) and numbers["data"] == "somewhere"
    assert numbers["classes"]["nothing"] == {"AP": None, "AP50": None, "objects": 0, "confidence": None}
    assert numbers["classes"]["square"]["objects"] == 100
    assert "image_classes" not in numbers
    assert files["predictions.png"].startswith(b"\x89PNG")


def test_a_report_holds_the_metrics_of_every_task(rich):
    detections = [
        ImageDetections(
            np.array([[0.0, 0, 30, 30]]),
            np.array([0.9]),
            np.array([1]),
            masks=(run_length.encode(np.ones((record.height, record.width), np.uint8, order="F"))["counts"],),
            keypoints=np.zeros((1, 3, 3)),
            embeddings=np.ones((1, 1), np.float32),
            image_labels=np.array([0.9, 0.1]),
        )
        for record in read_annotations(rich)
    ]
    result = measure(rich, detections, ("detect", "classify", "embed", "segment", "pose"))
    files = report_files(result, select_examples(rich, detections, result.boxes, count=2), {})
    assert from_parquet(files["masks.parquet"], "segm") == result.task_rows["segment"]
    assert from_parquet(files["keypoints.parquet"], "keypoints") == result.task_rows["pose"]
    numbers = json.loads(files["metrics.json"])
    assert {name: numbers[name] for name in ("embed/mAP", "segment/AP", "pose/AP", "classify/F1")}.keys() < result.metrics.keys()
    assert {"AP", "segment/AP", "segment/AP50", "pose/AP", "pose/AP50"} < numbers["classes"]["square"].keys()
    assert numbers["classes"]["nothing"]["segment/AP"] is None
    assert numbers["image_classes"]["wide"]["images"] == 6

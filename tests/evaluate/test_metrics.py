import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from packed import pack
from yolor_ray.data.shards.records import Objects, Record
from yolor_ray.data.shards.union import open_datasets, relabel_to
from yolor_ray.evaluate import coco
from yolor_ray.evaluate.metrics import MAIN_METRICS, _Image, _measure_coco, best_thresholds, fitness, measure
from yolor_ray.evaluate.predict import merge_detections, predict_row_groups, read_annotations, read_truth
from yolor_ray.inference.detect import Detections
from yolor_ray.inference.postprocess import ImageDetections
from yolor_ray.pack.annotations.masks import box_mask

TASKS = tuple(MAIN_METRICS)


def _detect_all_tasks(images, *, confidence, iou, max_detections):
    """Test double of a perfect network of all tasks, which detects the white rectangle of each input."""
    detections = []
    for image in images.numpy():
        white = (image > 127).all(axis=2)
        rows, columns = np.flatnonzero(white.any(axis=1)), np.flatnonzero(white.any(axis=0))
        x1, y1, x2, y2 = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        inside = [(image != 114).any(axis=2).any(axis=axis).sum() for axis in (0, 1)]
        is_wide = inside[0] > inside[1]
        cells = white.reshape(len(white) // 4, 4, -1, 4).mean(axis=(1, 3)) - 0.5
        detections.append(
            Detections(
                torch.tensor([[x1, y1, x2, y2]]).float(),
                torch.tensor([0.9]),
                torch.tensor([1]),
                keypoints=torch.tensor([[[x1, y1, 0.9], [x2, y2, 0.9], [0, 0, 0.1]]]).float(),
                embeddings=torch.nn.functional.normalize(torch.tensor([[inside[0] / inside[1], 1.0]]).float()),
                coefficients=torch.ones(1, 1),
                prototypes=torch.from_numpy(cells)[None].float(),
                image_labels=torch.tensor([0.2, 0.8] if is_wide else [0.8, 0.2]),
            )
        )
    return detections


def _f1_by_threshold(matches, category, thresholds):
    """Return the F1 score at IoU .50 of the detections over each threshold."""
    images = [image for image in matches if image and image["category_id"] == category and image["aRng"] == [0, 1e10]]
    counted = ~np.concatenate([image["dtIgnore"][0] for image in images]).astype(bool)
    scores = np.concatenate([image["dtScores"] for image in images])[counted]
    is_true = (np.concatenate([image["dtMatches"][0] for image in images]) > 0)[counted]
    objects = sum(int((~np.array(image["gtIgnore"]).astype(bool)).sum()) for image in images)
    kept = scores[None] > np.asarray(thresholds)[:, None]
    return 2 * (kept & is_true).sum(axis=1) / np.maximum(kept.sum(axis=1) + objects, 1)


def test_no_threshold_has_a_clearly_higher_f1_score(shared):
    folder = shared / "datasets" / "coco_eval_check"
    truth, rows = (json.loads((folder / f"instances_val2014_{name}").read_text()) for name in ("100.json", "fakebbox100_results.json"))
    thresholds = best_thresholds(coco.measure(truth, rows))
    matches = coco.match_detections(truth, rows).eval_imgs
    every = np.unique([row["score"] for row in rows]) - 1e-9
    names = {category["id"]: category["name"] for category in truth["categories"]}
    for category, name in names.items():
        if name in thresholds:
            best = _f1_by_threshold(matches, category, every).max()
            assert _f1_by_threshold(matches, category, [thresholds[name]])[0] >= best - 0.01, name
    absent = names.values() - thresholds.keys()
    objects = {annotation["category_id"] for annotation in truth["annotations"]}
    assert {name for category, name in names.items() if category not in objects} <= absent
    assert len(thresholds) > 40


def test_the_last_true_positive_passes_a_threshold_of_its_own_confidence(rich, perfect):
    """`confidence > threshold` selects detections, so a threshold equal to a confidence would drop the detection."""
    result = measure(rich, perfect, TASKS)
    assert best_thresholds(result.boxes) == {"square": 0.8999}
    assert result.boxes.classes["square"].confidence == pytest.approx(0.9)


@pytest.fixture(scope="module")
def perfect(rich):
    return merge_detections([dict(predict_row_groups(_detect_all_tasks, rich, rich.row_groups, 320, 16))], rich.images)


def test_a_perfect_network_scores_one_in_every_task(rich, perfect):
    result = measure(rich, perfect, TASKS)
    assert [result.metrics[name] for name in MAIN_METRICS.values()] == pytest.approx([1] * 5, abs=0.03)
    assert result.metrics["classify/F1"] == result.metrics["embed/rank1"] == 1
    assert fitness(result.metrics, TASKS) == pytest.approx(1, abs=0.03)
    assert set(result.metrics) == {
        *coco.METRICS,
        *(f"segment/{name}" for name in coco.METRICS),
        *(f"pose/{name}" for name in coco.KEYPOINT_METRICS),
        *("classify/mAP", "classify/F1", "embed/rank1", "embed/mAP"),
    }
    assert {name: label.images for name, label in result.labels.items()} == {"tall": 12, "wide": 6}


def test_boxes_are_scored_as_without_other_tasks(rich, perfect):
    result = measure(rich, perfect, ("detect",))
    rows = [row for index, detections in enumerate(perfect) if index % 4 != 1 for row in coco.make_result_rows(index, detections, 1, 1)]
    assert result.metrics == coco.score(read_truth(rich), rows) and result.rows == rows
    assert result.masks is result.keypoints is result.labels is None


def test_tasks_without_annotations_have_no_metrics(squares, rich):
    squares = relabel_to(squares, rich)
    detections = merge_detections([dict(predict_row_groups(_detect_all_tasks, squares, squares.row_groups, 64, 16))], squares.images)
    assert set(measure(squares, detections, TASKS).metrics) == set(coco.METRICS)
    assert detections[0].masks is detections[0].embeddings is None and detections[0].keypoints is not None


def test_a_task_without_annotations_is_neither_a_miss_nor_a_false_positive(rich, perfect):
    expected = measure(rich, perfect, TASKS).metrics

    def metrics_with_change(index, **outputs):
        labels = np.array([0.01, 0.99])
        nothing = replace(
            perfect[index], embeddings=np.zeros((1, 2), np.float32), keypoints=np.full((1, 3, 3), 9.0), image_labels=labels, **outputs
        )
        return measure(rich, [nothing if i == index else detections for i, detections in enumerate(perfect)], TASKS).metrics

    elsewhere = np.array([[0.0, 0, 3, 3]])
    # Image 0 is annotated for detection alone, image 1 for all other tasks.
    assert metrics_with_change(0) == expected
    changes = {name for name, value in metrics_with_change(1, boxes_xyxy=elsewhere).items() if value != expected[name]}
    assert {name.partition("/")[0] for name in changes} == {"classify", "embed", "pose"}


def test_a_network_without_detections_scores_zero(rich):
    empty = ImageDetections(
        *(np.zeros(shape) for shape in ((0, 4), 0)),
        np.zeros(0, np.int64),
        masks=(),
        keypoints=np.zeros((0, 3, 3)),
        embeddings=np.zeros((0, 2), np.float32),
        image_labels=np.zeros(2),
    )
    result = measure(rich, [empty] * rich.images, TASKS)
    names = set(MAIN_METRICS.values()) - {"classify/mAP"}
    assert {result.metrics[name] for name in names} == {0}


def test_in_a_union_an_image_is_scored_on_the_names_of_its_dataset(rich, squares, perfect):
    union = open_datasets(f"{squares.url},{rich.url}")
    relabelled = relabel_to(squares, rich)
    squares_detections = dict(predict_row_groups(_detect_all_tasks, relabelled, relabelled.row_groups, 320, 16))
    metrics = measure(union, [*merge_detections([squares_detections], squares.images), *perfect], TASKS).metrics
    assert [metrics[name] for name in MAIN_METRICS.values()] == pytest.approx([1] * 5, abs=0.03)


def _pair_record(**outputs):
    """Make an image of 100 x 100 pixels with two objects of class 1, annotated for every task of objects but embed."""
    boxes = np.array([[10, 10, 30, 30], [60, 60, 80, 80]], np.float32)
    objects = Objects(boxes, np.ones(2, np.int64), np.zeros(2, bool), np.full(2, 400, np.float32), **outputs)
    return Record("0.png", b"", 100, 100, objects, tasks=("detect", "pose", "segment"))


def _found(boxes_xyxy, labels=(1, 1), **outputs):
    boxes = np.array(boxes_xyxy, np.float64)
    masks = tuple(box_mask(box, 100, 100) for box in boxes.tolist())
    return ImageDetections(boxes, np.linspace(0.9, 0.8, len(boxes)), np.array(labels), masks=masks, **outputs)


@pytest.mark.parametrize("second", [(60, 60, 80, 80), (50, 55, 85, 90), (60, 60, 99, 80)])
def test_a_detection_on_an_object_of_unknown_mask_is_neither_right_nor_wrong(tmp_path, second):
    record = _pair_record(masks=(box_mask((10, 10, 30, 30), 100, 100), None))
    dataset = pack(str(tmp_path), [[record]])
    metrics = measure(dataset, [_found([second, (10, 10, 30, 30)])], ("detect", "segment")).metrics
    assert metrics["segment/AP"] == pytest.approx(1) and metrics["segment/AR100"] == 1
    assert measure(dataset, [_found([(10, 10, 30, 30)], [1])], ("segment",)).metrics["segment/AR100"] == 1, "not missed"
    elsewhere = measure(dataset, [_found([(2, 70, 20, 98), (10, 10, 30, 30)])], ("segment",)).metrics
    assert elsewhere["segment/AP"] < 0.6, "a detection elsewhere is false"
    assert measure(dataset, [_found([(10, 10, 30, 30)], [1])], ("detect",)).metrics["AP"] < 0.6, "its box is known"


def test_detections_of_a_class_without_keypoints_are_no_poses(tmp_path):
    points = np.full((2, 2, 3), (0, 0, -1), np.float32)
    points[0] = (12, 12, 2), (28, 28, 2)
    record = _pair_record(masks=None, keypoints=points)
    record = replace(record, objects=replace(record.objects, labels=np.array([1, 0])))
    names = {"keypoint_names": ("a", "b"), "class_keypoints": {"square": ("a", "b")}}
    dataset = pack(str(tmp_path), [[record]], **names)
    found = _found(record.objects.boxes_xyxy, (1, 0), keypoints=np.concatenate([points[:1], points[:1]]).astype(float))
    rows = _measure_coco(dataset, [_Image(0, record, 0, found)], "pose")[1]
    assert [row["category_id"] for row in rows] == [1]
    assert measure(dataset, [found], ("pose",)).metrics["pose/AP"] == pytest.approx(1)


def test_an_image_without_a_labelled_keypoint_counts_as_in_coco(tmp_path):
    labelled, unlabelled = np.zeros((2, 2, 2, 3), np.float32)
    labelled[0], labelled[1] = ((12, 12, 2), (28, 28, 2)), ((62, 62, 2), (78, 78, 2))
    records = [replace(_pair_record(keypoints=points), name=f"{index}.png") for index, points in enumerate((labelled, unlabelled))]
    dataset = pack(str(tmp_path), [records], keypoint_names=("a", "b"))

    def ap(points, boxes):
        others = _found(boxes, keypoints=np.array(points, np.float64))
        return measure(dataset, [_found(records[0].objects.boxes_xyxy, keypoints=labelled.astype(float)), others], ("pose",)).metrics[
            "pose/AP"
        ]

    boxes = records[1].objects.boxes_xyxy
    assert ap(labelled, boxes) == pytest.approx(1), "detections on objects without labels are ignored"
    assert ap([[(5, 90, 1), (9, 95, 1)]] * 2, boxes) < 0.9, "those elsewhere are false"


def test_fitness_is_the_mean_of_the_main_metrics_with_a_value():
    metrics = {"AP": 0.2, "AP50": 0.9, "classify/mAP": 0.6, "embed/mAP": -1.0, "segment/AP": 0.1}
    assert fitness(metrics, ("detect",)) == 0.2
    assert fitness(metrics, ("detect", "classify", "embed", "pose")) == pytest.approx(0.4)
    assert fitness({"AP": -1.0}, ("detect",)) == -1


def test_records_are_read_in_the_order_of_image_ids(rich):
    records = read_annotations(rich)
    assert [record.name for record in records] == [f"{index:04d}.png" for index in range(24)]
    assert [record.tasks[0] for record in records[:4]] == ["detect", "classify", "classify", "classify"]
    assert all(record.image == b"" for record in records)
    assert {image["id"] for image in read_truth(rich)["images"]} == {index for index in range(24) if index % 4 != 1}

from dataclasses import replace

import numpy as np
import pytest
import torch

from yolor_ray.data.shards.union import open_datasets
from yolor_ray.evaluate import coco
from yolor_ray.evaluate.metrics import FITNESS, fitness, measure
from yolor_ray.evaluate.predict import annotations_of, merge, predict_groups, truth_of
from yolor_ray.inference.detect import Detections
from yolor_ray.inference.postprocess import ImageDetections

TASKS = tuple(FITNESS)


def _see_all(images, *, confidence, iou, max_detections):
    """Stand in for a perfect network of all tasks: it looks at the white rectangle of each input."""
    found = []
    for image in images.numpy():
        white = (image > 127).all(axis=2)
        rows, columns = np.flatnonzero(white.any(axis=1)), np.flatnonzero(white.any(axis=0))
        x1, y1, x2, y2 = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        inside = [(image != 114).any(axis=2).any(axis=axis).sum() for axis in (0, 1)]
        wide = inside[0] > inside[1]
        cells = white.reshape(len(white) // 4, 4, -1, 4).mean(axis=(1, 3)) - 0.5
        found.append(
            Detections(
                torch.tensor([[x1, y1, x2, y2]]).float(),
                torch.tensor([0.9]),
                torch.tensor([1]),
                keypoints=torch.tensor([[[x1, y1, 0.9], [x2, y2, 0.9], [0, 0, 0.1]]]).float(),
                embeddings=torch.nn.functional.normalize(torch.tensor([[inside[0] / inside[1], 1.0]]).float()),
                coefficients=torch.ones(1, 1),
                prototypes=torch.from_numpy(cells)[None].float(),
                image_labels=torch.tensor([0.2, 0.8] if wide else [0.8, 0.2]),
            )
        )
    return found


@pytest.fixture(scope="module")
def seen(rich):
    return merge([dict(predict_groups(_see_all, rich, rich.row_groups, 320, 16))], rich.images)


def test_a_perfect_network_scores_one_in_every_task(rich, seen):
    found = measure(rich, seen, TASKS)
    assert [found.metrics[name] for name in FITNESS.values()] == pytest.approx([1] * 5, abs=0.03)
    assert found.metrics["classify/F1"] == found.metrics["embed/rank1"] == 1
    assert fitness(found.metrics, TASKS) == pytest.approx(1, abs=0.03)
    assert set(found.metrics) == {
        *coco.METRICS,
        *(f"segment/{name}" for name in coco.METRICS),
        *(f"pose/{name}" for name in coco.KEYPOINT_METRICS),
        *("classify/mAP", "classify/F1", "embed/rank1", "embed/mAP"),
    }
    assert {name: label.images for name, label in found.labels.items()} == {"tall": 12, "wide": 6}


def test_boxes_are_scored_as_without_other_tasks(rich, seen):
    found = measure(rich, seen, ("detect",))
    rows = [row for index, one in enumerate(seen) if index % 4 != 1 for row in coco.detection_rows(index, one, 1, 1)]
    assert found.metrics == coco.score(truth_of(rich), rows) and found.rows == rows
    assert found.masks is found.keypoints is found.labels is None


def test_tasks_that_the_data_set_lacks_have_no_numbers(squares):
    seen = merge([dict(predict_groups(_see_all, squares, squares.row_groups, 64, 16))], squares.images)
    assert set(measure(squares, seen, TASKS).metrics) == set(coco.METRICS)
    assert seen[0].masks is seen[0].embeddings is None and seen[0].keypoints is not None


def test_what_an_image_is_not_annotated_for_is_neither_a_miss_nor_a_false_alarm(rich, seen):
    expected = measure(rich, seen, TASKS).metrics

    def changed(index, **more):
        wide = np.array([0.01, 0.99])
        nothing = replace(
            seen[index], embeddings=np.zeros((1, 2), np.float32), keypoints=np.full((1, 3, 3), 9.0), image_labels=wide, **more
        )
        return measure(rich, [nothing if i == index else one for i, one in enumerate(seen)], TASKS).metrics

    elsewhere = np.array([[0.0, 0, 3, 3]])
    changes = {name for name, value in changed(0).items() if value != expected[name]}  # image 0 is annotated for detection alone
    assert changes == set()
    changes = {name for name, value in changed(1, boxes_xyxy=elsewhere).items() if value != expected[name]}  # image 1 for all else
    assert {name.partition("/")[0] for name in changes} == {"classify", "embed", "pose"}


def test_a_network_that_finds_nothing_scores_zero(rich):
    empty = ImageDetections(
        *(np.zeros(shape) for shape in ((0, 4), 0)),
        np.zeros(0, np.int64),
        masks=(),
        keypoints=np.zeros((0, 3, 3)),
        embeddings=np.zeros((0, 2), np.float32),
        image_labels=np.zeros(2),
    )
    found = measure(rich, [empty] * rich.images, TASKS)
    names = set(FITNESS.values()) - {"classify/mAP"}
    assert {found.metrics[name] for name in names} == {0}


def test_in_a_union_an_image_judges_only_what_its_own_data_set_names(rich, squares, seen):
    union = open_datasets(f"{squares.url},{rich.url}")
    of_squares = merge([dict(predict_groups(_see_all, squares, squares.row_groups, 320, 16))], squares.images)
    found = measure(union, [*of_squares, *seen], TASKS).metrics
    assert [found[name] for name in FITNESS.values()] == pytest.approx([1] * 5, abs=0.03)


def test_fitness_is_the_mean_of_main_numbers_that_could_be_measured():
    metrics = {"AP": 0.2, "AP50": 0.9, "classify/mAP": 0.6, "embed/mAP": -1.0, "segment/AP": 0.1}
    assert fitness(metrics, ("detect",)) == 0.2
    assert fitness(metrics, ("detect", "classify", "embed", "pose")) == pytest.approx(0.4)
    assert fitness({"AP": -1.0}, ("detect",)) == -1


def test_records_are_read_in_the_order_of_image_ids(rich):
    annotated = annotations_of(rich)
    assert [one.name for one in annotated] == [f"{index:04d}.png" for index in range(24)]
    assert [one.tasks[0] for one in annotated[:4]] == ["detect", "classify", "classify", "classify"]
    assert all(one.image == b"" for one in annotated)
    assert {image["id"] for image in truth_of(rich)["images"]} == {index for index in range(24) if index % 4 != 1}

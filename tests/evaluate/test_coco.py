import copy
import json
import random

import numpy as np
import pytest
from pycocotools import mask as run_length

from yolor_ray.data.shards.records import Objects, objects_from_boxes
from yolor_ray.errors import DataError
from yolor_ray.evaluate import coco
from yolor_ray.evaluate.scorer import RESULT_FIELDS
from yolor_ray.inference.postprocess import ImageDetections

PUBLISHED = {
    "bbox": (
        ("instances_val2014_100.json", "instances_val2014_fakebbox100_results.json"),
        "0.504581 0.696973 0.572982 0.585626 0.519400 0.501398 0.386813 0.593680 0.595353 0.639811 0.566421 0.564291",
    ),
    "segm": (
        ("instances_val2014_100.json", "instances_val2014_fakesegm100_results.json"),
        "0.319545 0.562288 0.298927 0.387374 0.310183 0.326934 0.268230 0.415449 0.416839 0.469450 0.376759 0.381472",
    ),
    "keypoints": (
        ("kp_example_coco_val.json", "kp_example_coco_preds.json"),
        "0.860890 0.993145 0.910891 0.775578 0.937252 0.875 1.0 0.916667 0.78 0.942857",
    ),
}


def _scene(crowd=(False, False, False)):
    """Return annotations of two images of 200 x 100 pixels: a cat in the first, a cat and a dog in the second."""
    first = objects_from_boxes(np.array([[10, 10, 60, 60]]), np.array([0]))
    boxes = np.array([[20, 10, 90, 80], [100, 5, 190, 95]], np.float32)
    second = Objects(boxes, np.array([0, 1]), np.array(crowd[1:]), np.array([4900, 8100], np.float32))
    return coco.make_truth([(0, 200, 100, first), (1, 200, 100, second)], ("cat", "dog", "yak"))


def _perfect(truth):
    scores = iter(np.linspace(0.9, 0.5, len(truth["annotations"])))
    return [{key: a[key] for key in ("image_id", "category_id", "bbox")} | {"score": float(next(scores))} for a in truth["annotations"]]


@pytest.mark.parametrize("iou_type", PUBLISHED)
def test_the_published_files_give_the_published_numbers(shared, iou_type):
    files, numbers = PUBLISHED[iou_type]
    folder = shared / "datasets" / "coco_eval_check"
    metrics = coco.score_files(*(str(folder / name) for name in files), iou_type)
    assert list(metrics) == list(coco.KEYPOINT_METRICS if iou_type == "keypoints" else coco.METRICS)
    assert list(metrics.values()) == pytest.approx([float(number) for number in numbers.split()], abs=1e-6)


def test_perfect_predictions_score_one_in_every_size_that_occurs():
    truth = _scene()
    metrics = coco.score(truth, _perfect(truth))
    assert metrics.keys() == set(coco.METRICS)
    assert metrics["APs"] == metrics["ARs"] == -1  # no object is under 32 x 32 pixels
    assert all(metrics[name] == pytest.approx(1) for name in ("AP", "AP50", "AP75", "APm", "AR10", "AR100"))


def test_the_order_of_images_and_rows_has_no_effect(shared):
    folder = shared / "datasets" / "coco_eval_check"
    truth = json.loads((folder / "instances_val2014_100.json").read_text())
    rows = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    for index, row in enumerate(rows):
        row["score"] += index * 1e-9  # the scorer keeps the order of the rows among equal scores of one image
    expected = coco.score(truth, rows)
    random.Random(3).shuffle(rows)
    random.Random(4).shuffle(truth["images"])
    random.Random(5).shuffle(truth["annotations"])
    assert coco.score(truth, rows) == expected


def test_scoring_changes_neither_annotations_nor_rows():
    truth = _scene()
    rows = _perfect(truth)
    before = copy.deepcopy((truth, rows))
    coco.score(truth, rows)
    assert (truth, rows) == before


def test_a_crowd_region_is_neither_a_miss_nor_a_false_positive():
    rows = _perfect(_scene())
    truth = _scene(crowd=(False, False, True))
    assert coco.score(truth, rows)["AP"] == pytest.approx(1)
    assert coco.score(truth, [row for row in rows if row["category_id"] == 0])["AP"] == pytest.approx(1)
    assert coco.measure(truth, rows).classes["dog"].AP == -1


def test_no_detections_score_zero():
    metrics = coco.score(_scene(), [])
    assert metrics["AP"] == metrics["AR100"] == 0
    assert metrics["APs"] == -1


def test_a_dataset_without_objects_scores_minus_one():
    truth = coco.make_truth([(0, 50, 50, objects_from_boxes(np.zeros((0, 4)), np.zeros(0)))], ("cat",))
    assert set(coco.score(truth, []).values()) == {-1}


def test_numbers_are_given_for_each_class():
    truth = _scene()
    rows = [row for row in _perfect(truth) if row["category_id"] == 0]
    rows.append({"image_id": 0, "category_id": 0, "bbox": [100.0, 0.0, 30.0, 30.0], "score": 0.2})
    result = coco.measure(truth, rows)
    assert result.classes == {
        "cat": coco.ClassScore(pytest.approx(1), pytest.approx(1), objects=2, confidence=pytest.approx(rows[1]["score"])),
        "dog": coco.ClassScore(0, 0, objects=1, confidence=-1),
        "yak": coco.ClassScore(-1, -1, objects=0, confidence=-1),
    }
    assert result.precision50.shape == result.precision.shape == (101, 3)
    assert result.precision50[:, 0] == pytest.approx(1)
    assert np.isnan(result.precision50[:, 2]).all()


def test_the_best_confidence_separates_true_from_false_positives():
    truth = _scene()
    false_positives = [{"image_id": 0, "category_id": 0, "bbox": [150.0, 5.0 * i, 9.0, 9.0], "score": 0.3 - i / 100} for i in range(9)]
    confidence = coco.measure(truth, _perfect(truth) + false_positives).classes["cat"].confidence
    assert 0.3 < confidence <= 0.9


def test_masks_with_boxes_are_sized_by_the_area_of_the_mask():
    pixels = np.zeros((100, 100), np.uint8, order="F")
    pixels[np.arange(100), np.arange(100)] = 1  # a thin diagonal: 100 pixels of area in a box of 10,000
    mask = run_length.encode(pixels)
    objects = Objects(np.array([[0, 0, 100, 100]], np.float32), np.array([0]), np.array([False]), np.array([100.0]), (mask["counts"],))
    truth = coco.make_truth([(0, 100, 100, objects)], ("hair",))
    row = {"image_id": 0, "category_id": 0, "bbox": [0, 0, 100, 100], "segmentation": truth["annotations"][0]["segmentation"], "score": 1.0}
    miss = row | {"segmentation": run_length.encode(np.asfortranarray(pixels[::-1]))}
    assert coco.score(truth, [row], "segm")["APs"] == pytest.approx(1)
    assert coco.score(truth, [miss | {"score": 1.0}, row | {"score": 0.5}], "segm")["APs"] == pytest.approx(0.5)


def test_objects_with_other_than_17_keypoints_are_scored():
    keypoints = np.array([[[10, 10, 2], [50, 40, 1], [0, 0, 0]]], np.float32)
    objects = Objects(np.array([[5, 5, 60, 60]], np.float32), np.array([0]), np.array([False]), np.array([3025.0]), keypoints=keypoints)
    truth = coco.make_truth([(7, 100, 100, objects)], ("fly",))
    assert truth["annotations"][0]["num_keypoints"] == 2

    def shifted(pixels):
        points = (keypoints[0] + [pixels, 0, 0]).reshape(-1).tolist()
        return [{"image_id": 7, "category_id": 0, "keypoints": points, "score": 0.8}]

    ap = [coco.score(truth, shifted(pixels), "keypoints")["AP"] for pixels in (0, 5, 50)]
    assert ap[0] == pytest.approx(1)
    assert ap[0] > ap[1] > ap[2] == 0


def test_an_annotation_with_id_zero_can_be_matched():
    truth = _scene()
    for index, annotation in enumerate(truth["annotations"]):
        annotation["id"] = index
    assert coco.score(truth, _perfect(truth))["AP"] == pytest.approx(1)


def test_scoring_prints_nothing(capsys):
    truth = _scene()
    coco.score(truth, _perfect(truth))
    assert capsys.readouterr().out == ""


def test_result_rows_hold_plain_numbers_and_the_compared_field():
    detections = ImageDetections(
        np.array([[1.0, 2, 11, 22]]), np.array([0.5]), np.array([2]), masks=(b"0150",), keypoints=np.array([[[3.0, 4, 0.25]]])
    )
    compared = {"bbox": [1, 2, 10, 20], "segmentation": {"size": [40, 30], "counts": "0150"}, "keypoints": [3, 4, 0.25]}
    for iou_type, field in RESULT_FIELDS.items():
        rows = json.loads(json.dumps(coco.make_result_rows(4, detections, 30, 40, iou_type)))
        assert rows == [{"image_id": 4, "category_id": 2, "score": 0.5, field: compared[field]}]


def test_unknown_keypoints_are_not_compared():
    def truth(unknown):
        keypoints = np.array([[[10, 10, 2], [50, 40, unknown]]], np.float32)
        objects = Objects(np.array([[5, 5, 60, 60]], np.float32), np.array([0]), np.array([False]), np.array([3025.0]), keypoints=keypoints)
        return coco.make_truth([(7, 100, 100, objects)], ("fly",))

    assert truth(-1) == truth(0)
    rows = [{"image_id": 7, "category_id": 0, "keypoints": [10, 10, 1, 90, 90, 1], "score": 0.8}]
    assert coco.score(truth(-1), rows, "keypoints")["AP"] == pytest.approx(1)
    assert coco.score(truth(2), rows, "keypoints")["AP50"] == pytest.approx(1)
    assert coco.score(truth(2), rows, "keypoints")["AP"] < 0.2


def test_keypoints_with_boxes_are_sized_by_the_extent_of_the_keypoints(shared):
    folder = shared / "datasets" / "coco_eval_check"
    truth, rows = (json.loads((folder / f"kp_example_coco_{name}.json").read_text()) for name in ("val", "preds"))
    boxed = [row | {"bbox": [0, 0, 5, 5]} for row in rows]
    assert coco.score(truth, boxed, "keypoints") == coco.score(truth, rows, "keypoints")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 9}, "detection 1: found image_id 9, expected one of the 2 annotated images"),
        ({"category_id": 9}, r"detection 1: found category_id 9, expected one of \[0, 1, 2\]"),
    ],
)
def test_a_row_of_an_unknown_image_or_category_is_named(change, message):
    truth = _scene()
    rows = _perfect(truth)
    rows[1] |= change
    with pytest.raises(DataError, match=message):
        coco.score(truth, rows)


def test_rows_without_a_required_field_are_named():
    truth = _scene()
    rows = _perfect(truth)
    with pytest.raises(DataError, match="annotation 0: found no 'segmentation', which scoring segm needs"):
        coco.score(truth, rows, "segm")
    del rows[2]["score"]
    with pytest.raises(DataError, match="detection 2: found no 'score', which scoring bbox needs"):
        coco.score(truth, rows)


@pytest.mark.parametrize(
    ("truth", "results", "message"),
    [
        ("{}", "[]", "truth.json: expected COCO annotations, an object with images, annotations and categories"),
        ('{"images": [], "annotations": [], "categories": []}', "{}", "results.json: found a JSON dict, expected COCO results"),
        ("{", "[]", "truth.json: expected JSON"),
    ],
)
def test_files_in_other_formats_are_named(tmp_path, truth, results, message):
    (tmp_path / "truth.json").write_text(truth)
    (tmp_path / "results.json").write_text(results)
    with pytest.raises(DataError, match=message):
        coco.score_files(str(tmp_path / "truth.json"), str(tmp_path / "results.json"), "bbox")


@pytest.mark.parametrize(("number", "expected"), [(-1.0, None), (0.0, 0.0), (0.5, 0.5), (float("nan"), None)])
def test_numbers_without_a_value_are_replaced(number, expected):
    assert coco.value_or(number, None) == expected

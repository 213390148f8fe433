import copy
import json
import random

import numpy as np
import pytest
from pycocotools import mask as run_length

from yolor_ray.data.shards.records import Objects, objects_from_boxes
from yolor_ray.errors import DataError
from yolor_ray.evaluate import coco
from yolor_ray.inference.postprocess import ImageDetections

FIGURES = {
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
    """Two images of 200 x 100 pixels: one object, and two of which the last is in a class of its own."""
    first = objects_from_boxes(np.array([[10, 10, 60, 60]]), np.array([0]))
    boxes = np.array([[20, 10, 90, 80], [100, 5, 190, 95]], np.float32)
    second = Objects(boxes, np.array([0, 1]), np.array(crowd[1:]), np.array([4900, 8100], np.float32))
    return coco.truth([(0, 200, 100, first), (1, 200, 100, second)], ("cat", "dog", "yak"))


def _perfect(truth):
    scores = iter(np.linspace(0.9, 0.5, len(truth["annotations"])))
    return [{key: a[key] for key in ("image_id", "category_id", "bbox")} | {"score": float(next(scores))} for a in truth["annotations"]]


@pytest.mark.parametrize("kind", FIGURES)
def test_the_published_figures_come_out_of_the_published_files(shared, kind):
    files, figures = FIGURES[kind]
    folder = shared / "datasets" / "coco_eval_check"
    found = coco.score_files(*(str(folder / name) for name in files), kind)
    assert list(found) == list(coco.KEYPOINT_METRICS if kind == "keypoints" else coco.METRICS)
    assert list(found.values()) == pytest.approx([float(figure) for figure in figures.split()], abs=1e-6)


def test_perfect_predictions_score_one_in_every_size_that_occurs():
    truth = _scene()
    found = coco.score(truth, _perfect(truth))
    assert found.keys() == set(coco.METRICS)
    assert found["APs"] == found["ARs"] == -1  # no object is under 32 x 32 pixels
    assert all(found[name] == pytest.approx(1) for name in ("AP", "AP50", "AP75", "APm", "AR10", "AR100"))


def test_the_order_of_images_and_rows_has_no_effect(shared):
    folder = shared / "datasets" / "coco_eval_check"
    truth = json.loads((folder / "instances_val2014_100.json").read_text())
    rows = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    for index, row in enumerate(rows):
        row["score"] += index * 1e-9  # the scorer keeps the given order among equal scores of one image
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


def test_a_crowd_region_is_neither_missed_nor_a_mistake_to_predict():
    rows = _perfect(_scene())
    truth = _scene(crowd=(False, False, True))
    assert coco.score(truth, rows)["AP"] == pytest.approx(1)
    assert coco.score(truth, [row for row in rows if row["category_id"] == 0])["AP"] == pytest.approx(1)
    assert coco.per_class_ap(truth, rows)["dog"] == -1


def test_no_detections_score_zero():
    found = coco.score(_scene(), [])
    assert found["AP"] == found["AR100"] == 0
    assert found["APs"] == -1


def test_a_data_set_without_objects_scores_minus_one():
    truth = coco.truth([(0, 50, 50, objects_from_boxes(np.zeros((0, 4)), np.zeros(0)))], ("cat",))
    assert set(coco.score(truth, []).values()) == {-1}


def test_every_class_has_its_own_numbers():
    truth = _scene()
    rows = [row for row in _perfect(truth) if row["category_id"] == 0]
    rows.append({"image_id": 0, "category_id": 0, "bbox": [100.0, 0.0, 30.0, 30.0], "score": 0.2})
    found = coco.measure(truth, rows)
    assert found.classes == {
        "cat": coco.ClassScore(pytest.approx(1), pytest.approx(1), objects=2, confidence=pytest.approx(rows[1]["score"])),
        "dog": coco.ClassScore(0, 0, objects=1, confidence=-1),
        "yak": coco.ClassScore(-1, -1, objects=0, confidence=-1),
    }
    assert found.precision50.shape == found.precision.shape == (101, 3)
    assert found.precision50[:, 0] == pytest.approx(1)
    assert np.isnan(found.precision50[:, 2]).all()


def test_the_best_confidence_leaves_out_low_false_alarms_and_keeps_true_finds():
    truth = _scene()
    false_alarms = [{"image_id": 0, "category_id": 0, "bbox": [150.0, 5.0 * i, 9.0, 9.0], "score": 0.3 - i / 100} for i in range(9)]
    found = coco.measure(truth, _perfect(truth) + false_alarms).classes["cat"].confidence
    assert 0.3 < found <= 0.9


def test_masks_are_sized_by_their_own_area_when_a_box_is_given_too():
    pixels = np.zeros((100, 100), np.uint8, order="F")
    pixels[np.arange(100), np.arange(100)] = 1  # a thin diagonal: 100 pixels of area in a box of 10,000
    mask = run_length.encode(pixels)
    objects = Objects(np.array([[0, 0, 100, 100]], np.float32), np.array([0]), np.array([False]), np.array([100.0]), (mask["counts"],))
    truth = coco.truth([(0, 100, 100, objects)], ("hair",))
    row = {"image_id": 0, "category_id": 0, "bbox": [0, 0, 100, 100], "segmentation": truth["annotations"][0]["segmentation"], "score": 1.0}
    miss = row | {"segmentation": run_length.encode(np.asfortranarray(pixels[::-1]))}
    assert coco.score(truth, [row], "segm")["APs"] == pytest.approx(1)
    assert coco.score(truth, [miss | {"score": 1.0}, row | {"score": 0.5}], "segm")["APs"] == pytest.approx(0.5)


def test_bodies_with_other_than_17_joints_are_scored():
    joints = np.array([[[10, 10, 2], [50, 40, 1], [0, 0, 0]]], np.float32)
    objects = Objects(np.array([[5, 5, 60, 60]], np.float32), np.array([0]), np.array([False]), np.array([3025.0]), keypoints=joints)
    truth = coco.truth([(7, 100, 100, objects)], ("fly",))
    assert truth["annotations"][0]["num_keypoints"] == 2

    def shifted(pixels):
        points = (joints[0] + [pixels, 0, 0]).reshape(-1).tolist()
        return [{"image_id": 7, "category_id": 0, "keypoints": points, "score": 0.8}]

    found = [coco.score(truth, shifted(pixels), "keypoints")["AP"] for pixels in (0, 5, 50)]
    assert found[0] == pytest.approx(1)
    assert found[0] > found[1] > found[2] == 0


def test_a_first_annotation_with_id_zero_still_counts_as_found():
    truth = _scene()
    for index, annotation in enumerate(truth["annotations"]):
        annotation["id"] = index
    assert coco.score(truth, _perfect(truth))["AP"] == pytest.approx(1)


def test_nothing_is_printed(capsys):
    truth = _scene()
    coco.score(truth, _perfect(truth))
    assert capsys.readouterr().out == ""


def test_detection_rows_hold_plain_numbers_and_what_is_compared():
    found = ImageDetections(
        np.array([[1.0, 2, 11, 22]]), np.array([0.5]), np.array([2]), masks=(b"0150",), keypoints=np.array([[[3.0, 4, 0.25]]])
    )
    compared = {"bbox": [1, 2, 10, 20], "segmentation": {"size": [40, 30], "counts": "0150"}, "keypoints": [3, 4, 0.25]}
    for kind, field in coco.FIELDS.items():
        rows = json.loads(json.dumps(coco.detection_rows(4, found, 30, 40, kind)))
        assert rows == [{"image_id": 4, "category_id": 2, "score": 0.5, field: compared[field]}]


def test_joints_that_a_data_set_knows_nothing_of_are_compared_with_nothing():
    def truth(unknown):
        joints = np.array([[[10, 10, 2], [50, 40, unknown]]], np.float32)
        objects = Objects(np.array([[5, 5, 60, 60]], np.float32), np.array([0]), np.array([False]), np.array([3025.0]), keypoints=joints)
        return coco.truth([(7, 100, 100, objects)], ("fly",))

    assert truth(-1) == truth(0)
    rows = [{"image_id": 7, "category_id": 0, "keypoints": [10, 10, 1, 90, 90, 1], "score": 0.8}]
    assert coco.score(truth(-1), rows, "keypoints")["AP"] == pytest.approx(1)
    assert coco.score(truth(2), rows, "keypoints")["AP50"] == pytest.approx(1)
    assert coco.score(truth(2), rows, "keypoints")["AP"] < 0.2


def test_keypoints_are_sized_by_their_own_extent_when_a_box_is_given_too(shared):
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
def test_a_row_that_fits_no_annotation_file_is_named(change, message):
    truth = _scene()
    rows = _perfect(truth)
    rows[1] |= change
    with pytest.raises(DataError, match=message):
        coco.score(truth, rows)


def test_rows_without_a_needed_field_are_named():
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
def test_files_that_are_no_coco_files_are_named(tmp_path, truth, results, message):
    (tmp_path / "truth.json").write_text(truth)
    (tmp_path / "results.json").write_text(results)
    with pytest.raises(DataError, match=message):
        coco.score_files(str(tmp_path / "truth.json"), str(tmp_path / "results.json"), "bbox")

"""Annotation files of other tools are scored as COCO means them, with bare pycocotools as the referee."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest

from coco_referee import referee
from yolor_ray.config import EvaluateConfig
from yolor_ray.data.rle import encode_mask
from yolor_ray.data.shards.records import Objects
from yolor_ray.evaluate import coco
from yolor_ray.evaluate.run import evaluate
from yolor_ray.evaluate.scorer import OTHER_SIGMA, RESULT_FIELDS
from yolor_ray.evaluate.truth import complete_truth

ABSENT = object()
IMPLAUSIBLE = [ABSENT, None, 0, 0.0, -1, float("nan"), float("inf"), "90000", True, [], 1, 0.29, 1e7]
SIDES = {"small": 20, "medium": 60, "large": 300}


def truth_of(side: int, **fields: object) -> dict:
    """Return one object with a box of side x side pixels and two keypoints; fields that are ABSENT are left out."""
    keypoints = [10 + side / 4, 20 + side / 2, 2, 10 + side / 2, 20 + side, 1]
    full = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 20, side, side], "area": side * side, "iscrowd": 0}
    full |= {"keypoints": keypoints, "num_keypoints": 2} | fields
    return {
        "images": [{"id": 1, "width": 640, "height": 480}],
        "annotations": [{name: value for name, value in full.items() if value is not ABSENT}],
        "categories": [{"id": 1, "name": "cat"}],
    }


def rows_of(truth: dict, iou_type: str, off_by: float = 0.0) -> list:
    field = RESULT_FIELDS[iou_type]
    rows = []
    for annotation in truth["annotations"]:
        value = list(annotation[field])
        value[0] += off_by
        rows.append({"image_id": annotation["image_id"], "category_id": annotation["category_id"], "score": 0.9, field: value})
    return rows


@pytest.mark.parametrize("area", IMPLAUSIBLE, ids=lambda area: "absent" if area is ABSENT else str(area))
def test_an_implausible_area_counts_as_that_of_the_box(area):
    metrics = coco.score(truth_of(300, area=area), rows_of(truth_of(300), "bbox"))
    assert (metrics["APs"], metrics["APm"], metrics["APl"]) == (-1, -1, pytest.approx(1))


@pytest.mark.parametrize("iou_type", ["bbox", "keypoints"])
@pytest.mark.parametrize("side", SIDES.values(), ids=SIDES)
@pytest.mark.parametrize("area", [ABSENT, 0, -1], ids=["absent", "zero", "negative"])
def test_areas_that_are_not_positive_give_the_numbers_of_width_times_height(iou_type, side, area):
    # Off by a share of the side: the similarity of keypoints then depends on the area.
    rows = rows_of(truth_of(side), iou_type, off_by=side / 10)
    sigmas = [OTHER_SIGMA] * 2 if iou_type == "keypoints" else None
    expected = referee(truth_of(side), rows, iou_type, sigmas).stats
    assert list(coco.score(truth_of(side, area=area), rows, iou_type).values()) == pytest.approx(expected, abs=1e-12)
    assert 0 < expected[0] < 1


@pytest.mark.parametrize("area", [20_000, 45_000, 91_000])
def test_a_plausible_area_stays(area):
    assert complete_truth(truth_of(300, area=area)) == truth_of(300, area=area)


@pytest.mark.parametrize("area", [0, 100, 90_000], ids=["zero", "of another size", "of the box"])
def test_an_area_far_from_that_of_the_mask_is_replaced_by_it(area):
    thin = [[10, 20, 40, 20, 40, 320, 10, 320]]
    completed = complete_truth(truth_of(300, area=area, segmentation=thin))
    assert completed["annotations"][0]["area"] == 30 * 300
    metrics = coco.score(truth_of(300, area=area, segmentation=thin), rows_of(truth_of(300), "bbox"))
    assert (metrics["APm"], metrics["APl"]) == (pytest.approx(1), -1)


@pytest.mark.parametrize("segmentation", [[], [[1, 2]], {"size": [3, 3], "counts": "zz"}, "mask.png", None], ids=str)
def test_an_unusable_mask_leaves_the_area_of_the_box(segmentation):
    assert complete_truth(truth_of(300, area=0, segmentation=segmentation))["annotations"][0]["area"] == 90_000


def test_a_mask_on_an_image_of_unknown_size_leaves_the_area_of_the_box():
    truth = truth_of(300, area=0, segmentation=[[10, 20, 40, 20, 40, 320]])
    truth["images"] = [{"id": 1}]
    assert complete_truth(truth)["annotations"][0]["area"] == 90_000


@pytest.mark.parametrize(
    ("flag", "is_crowd"),
    [(ABSENT, 0), (None, 0), (0, 0), ("0", 0), (False, 0), (1, 1), (True, 1), ("1", 1), (1.0, 1), (" True", 1), ("1.0", 1), ("false", 0)],
)
def test_crowd_flags_are_read_by_their_meaning(flag, is_crowd):
    truth = truth_of(300, iscrowd=flag)
    assert complete_truth(truth)["annotations"][0]["iscrowd"] == is_crowd
    assert coco.score(truth, rows_of(truth, "bbox"))["AP"] == pytest.approx(-1 if is_crowd else 1)


@pytest.mark.parametrize("absent", ["num_keypoints", "bbox", "area"])
def test_keypoints_are_scored_without_the_fields_beside_them(absent):
    truth = truth_of(300, **{absent: ABSENT})
    assert coco.score(truth, rows_of(truth, "keypoints"), "keypoints")["AP"] == pytest.approx(1)


def test_completing_changes_neither_its_argument_nor_a_real_file(shared: Path):
    truth = json.loads((shared / "datasets" / "coco_eval_check" / "instances_val2014_100.json").read_text())
    before = copy.deepcopy(truth)
    assert complete_truth(truth)["annotations"] == before["annotations"]
    assert truth == before


def test_a_real_file_without_areas_keeps_its_AP(shared: Path):
    folder = shared / "datasets" / "coco_eval_check"
    truth = json.loads((folder / "instances_val2014_100.json").read_text())
    rows = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    expected = coco.score(truth, rows)
    for annotation in truth["annotations"]:
        del annotation["area"], annotation["iscrowd"]
    metrics = coco.score(truth, rows)
    # The pixels of masks and the areas of polygons differ for a few objects near the borders of COCO's sizes.
    assert metrics == pytest.approx(expected, abs=0.02)


def test_the_evaluate_job_scores_a_file_without_area_and_iscrowd(tmp_path: Path):
    truth = truth_of(300, area=ABSENT, iscrowd=ABSENT, keypoints=ABSENT, num_keypoints=ABSENT)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(rows_of(truth, "bbox")))
    result = evaluate(EvaluateConfig(truth=str(tmp_path / "truth.json"), results=str(tmp_path / "results.json")))
    assert (result["AP"], result["APs"], result["APm"], result["APl"]) == (pytest.approx(1), -1, -1, pytest.approx(1))


def test_objects_packed_with_area_zero_are_sized_by_their_masks_or_boxes():
    inside = np.zeros((480, 640), bool)
    inside[20:320, 10:40] = True
    arrays = np.array([[10, 20, 310, 320]], np.float32), np.array([0]), np.array([False]), np.array([0], np.float32)
    areas = [
        coco.make_truth([(0, 640, 480, Objects(*arrays, masks=masks))], ["cat"])["annotations"][0]["area"]
        for masks in (None, (encode_mask(inside),))
    ]
    assert areas == [90_000, 9_000]


def grid(count: int, **fields: object) -> dict:
    """Return `count` objects of 20 x 20 px with two labelled keypoints on one image."""
    truth = truth_of(20)
    truth["categories"].append({"id": 2, "name": "dog"})
    places = [(30 * (index % 20), 30 * (index // 20)) for index in range(count)]
    truth["annotations"] = [
        {"id": index + 1, "image_id": 1, "category_id": 1, "bbox": [x, y, 20, 20], "keypoints": [x, y, 2, x + 9, y + 9, 2]} | fields
        for index, (x, y) in enumerate(places)
    ]
    return truth


@pytest.mark.parametrize(("iou_type", "task", "limit"), [("bbox", "detect", 100), ("keypoints", "pose", 20)])
def test_more_objects_than_COCO_compares_detections_are_warned_of(iou_type, task, limit, caplog):
    full, over = grid(limit), grid(limit + 20)
    assert coco.score(full, rows_of(full, iou_type), iou_type)["AP"] == pytest.approx(1)
    assert "event=detection_limit" not in caplog.text
    assert coco.score(over, rows_of(over, iou_type), iou_type)["AP"] < 0.99
    assert f"event=detection_limit task={task} images=1 limit={limit}" in caplog.text


def test_the_limit_counts_objects_of_one_class_without_crowds_and_without_unlabelled_keypoints(caplog):
    crowds, classes, unlabelled = grid(120), grid(120), grid(120, keypoints=[0] * 6)
    for index in range(60):
        crowds["annotations"][index]["iscrowd"] = 1
        classes["annotations"][index]["category_id"] = 2
    coco.score(crowds, [])
    assert coco.score(classes, rows_of(classes, "bbox"))["AP"] == pytest.approx(1)
    coco.score(unlabelled, [], "keypoints")
    assert "event=detection_limit" not in caplog.text


@pytest.mark.parametrize(("box", "warns"), [([0.1, 0.2, 0.5, 0.5], True), ([0.1, 0.2, 50, 50], False)])
def test_boxes_in_fractions_are_warned_of(box, warns, caplog):
    truth = truth_of(300, bbox=box)
    coco.score(truth, rows_of(truth, "bbox"))
    assert ("event=looks_like_fractions" in caplog.text) == warns


SQUARE_MASK = [[10, 20, 310, 20, 310, 320, 10, 320]]


@pytest.mark.parametrize(
    "absent", [("area",), ("area", "bbox"), ("area", "iscrowd"), ("area", "id"), ("area", "bbox", "iscrowd", "id")], ids=str
)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_a_mask_gives_the_box_and_the_area(absent, iou_type, tmp_path):
    full = truth_of(300, segmentation=SQUARE_MASK)
    rows = rows_of(full, "bbox") if iou_type == "bbox" else rows_of(full, "keypoints")
    if iou_type == "segm":
        counts = encode_mask(np.pad(np.ones((300, 300), bool), ((20, 160), (10, 330)))).decode()
        rows = [{"image_id": 1, "category_id": 1, "score": 0.9, "segmentation": {"size": [480, 640], "counts": counts}}]
    truth = truth_of(300, segmentation=SQUARE_MASK, **dict.fromkeys(absent, ABSENT))
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    metrics = evaluate(EvaluateConfig(truth=str(tmp_path / "truth.json"), results=str(tmp_path / "rows.json"), iou_type=iou_type))
    assert (metrics["AP"], metrics["APl"], metrics["APs"]) == (pytest.approx(1), pytest.approx(1), -1)


@pytest.mark.parametrize("bbox", [None, [], [0, 0, 0, 0], [10, 20, 300], "10 20"], ids=str)
def test_a_box_without_area_is_that_of_the_mask(bbox):
    completed = complete_truth(truth_of(300, bbox=bbox, segmentation=SQUARE_MASK, keypoints=ABSENT))["annotations"][0]
    assert completed["bbox"] == [10, 20, 300, 300]


@pytest.mark.parametrize("image_id", [1, "1", 1.0, "01"])
@pytest.mark.parametrize("field", ["images", "annotations", "rows"])
def test_ids_are_equal_by_value(image_id, field):
    truth = truth_of(300)
    rows = rows_of(truth, "bbox")
    for entry in rows if field == "rows" else truth[field]:
        entry |= {"id": image_id} if field == "images" else {"image_id": image_id, "category_id": image_id}
    truth["categories"][0]["id"] = image_id
    assert coco.score(truth, rows)["AP"] == pytest.approx(1)


@pytest.mark.parametrize("pieces", [[[40, 40, 9, 9], *SQUARE_MASK], [*SQUARE_MASK, [40, 40, 9, 9]]], ids=["first", "last"])
def test_a_bad_piece_of_a_mask_is_not_compared(pieces):
    counts = encode_mask(np.pad(np.ones((300, 300), bool), ((20, 160), (10, 330)))).decode()
    rows = [{"image_id": 1, "category_id": 1, "score": 0.9, "segmentation": {"size": [480, 640], "counts": counts}}]
    assert coco.score(truth_of(300, segmentation=pieces), rows, "segm")["AP"] == pytest.approx(1)


@pytest.mark.parametrize("ids", [("a", "b"), (1, "b"), (2.5, "b"), ("b", "10")], ids=str)
@pytest.mark.parametrize("kind", ["images", "categories"])
def test_ids_may_be_text(ids, kind):
    field = {"images": "image_id", "categories": "category_id"}[kind]
    truth = truth_of(300)
    truth[kind] = [truth[kind][0] | {"id": key, "name": str(key)} for key in ids]
    truth["annotations"] = [truth["annotations"][0] | {field: key} for key in ids]
    assert coco.score(truth, rows_of(truth, "bbox"))["AP"] == pytest.approx(1)
    swapped = [row | {field: ids[0], "bbox": [300, 300, 20, 20]} for row in rows_of(truth, "bbox")]
    assert coco.score(truth, swapped)["AP"] == 0

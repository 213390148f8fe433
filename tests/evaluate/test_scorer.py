"""Numbers of the scorer, equal to those of pycocotools to the last digit."""

import json

import numpy as np
import pytest

from coco_referee import referee
from yolor_ray.data.rle import encode_mask
from yolor_ray.errors import DataError
from yolor_ray.evaluate import coco, scorer
from yolor_ray.evaluate.scorer import OTHER_SIGMA, RESULT_FIELDS

WIDTH, HEIGHT = 160, 120
FILES = {
    "bbox": ("instances_val2014_100.json", "instances_val2014_fakebbox100_results.json"),
    "segm": ("instances_val2014_100.json", "instances_val2014_fakesegm100_results.json"),
    "keypoints": ("kp_example_coco_val.json", "kp_example_coco_preds.json"),
}
SCENES = {
    "usual": {},
    "equal scores": {"decimals": 1},
    "no detections": {"detections": 0},
    "no objects": {"objects": 0},
    "neither": {"objects": 0, "detections": 0},
    "crowds": {"crowds": 0.6},
    "over 100 objects and detections of a class": {"objects": 210, "detections": 150, "classes": 1, "images": 1, "decimals": 2},
    "one image": {"images": 1},
    "whole pixels": {"whole": True, "decimals": 1},
    "3 keypoints": {"keypoints": 3},
}


def random_scene(iou_type, seed, images=5, classes=3, objects=14, detections=40, decimals=9, crowds=0.15, whole=False, keypoints=17):
    """Return random objects in a part of the images, and detections near to and far from them, in random order."""
    rng = np.random.default_rng(seed)
    truth = {
        "images": [{"id": 3 * i + 1, "width": WIDTH, "height": HEIGHT} for i in range(images)],
        "categories": [{"id": 2 * k, "name": f"class {k}"} for k in range(classes)],
        "annotations": [],
    }
    rows = []

    def random_box():
        sides = rng.uniform(1, 110, 2) / rng.choice([1, 2, 6])
        box = np.concatenate([rng.uniform(0, (WIDTH, HEIGHT) - np.minimum(sides, HEIGHT - 1)), sides])
        return np.maximum(box.round(), (0, 0, 1, 1)) if whole else box

    def compared(box, visibilities):
        if iou_type == "bbox":
            return box.tolist()
        if iou_type == "segm":
            x, y, width, height = box.astype(int)
            mask = np.zeros((HEIGHT, WIDTH), bool)
            mask[max(y, 0) : y + height, max(x, 0) : x + width] = True
            return {"size": [HEIGHT, WIDTH], "counts": encode_mask(mask & (rng.random(mask.shape) < 0.9)).decode()}
        points = box[:2] + np.linspace(0, 1, keypoints)[:, None] * box[2:]
        return np.column_stack([points, visibilities]).reshape(-1).tolist()

    for image in truth["images"][: images // 2 + 1]:
        boxes = [random_box() for _ in range(rng.integers(objects // 2, objects + 1))]
        for box in boxes:
            visibilities = rng.integers(0, 3, keypoints) * (rng.random() < 0.85)
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": int(rng.integers(classes)) * 2,
                    "bbox": box.tolist(),
                    "area": float(box[2] * box[3] * rng.uniform(0.5, 1)),
                    "iscrowd": int(rng.random() < crowds),
                    RESULT_FIELDS[iou_type]: compared(box, visibilities),
                    "num_keypoints": int((visibilities > 0).sum()),
                }
            )
    for _ in range(detections * images):
        near = truth["annotations"][rng.integers(len(truth["annotations"]))] if objects and rng.random() < 0.7 else None
        shift = rng.normal(0, 2, 4).round(0 if whole else 9)
        box = np.maximum(np.array(near["bbox"]) + shift, (-9, -9, 1, 1)) if near else random_box()
        rows.append(
            {
                "image_id": near["image_id"] if near else truth["images"][rng.integers(images)]["id"],
                "category_id": near["category_id"] if near and rng.random() < 0.9 else int(rng.integers(classes)) * 2,
                "score": round(rng.random(), decimals),
                RESULT_FIELDS[iou_type]: compared(box, rng.random(keypoints)),
            }
        )
    return truth, rows


def assert_equal_to_the_referee(truth, rows, iou_type, sigmas=None):
    expected = referee(truth, rows, iou_type, sigmas)
    result = coco.measure(truth, rows, iou_type)
    assert list(result.metrics.values()) == expected.stats.tolist()
    precision = np.where(expected.eval["precision"] == -1, np.nan, expected.eval["precision"])[:, :, :, 0, -1]
    np.testing.assert_array_equal(result.precision50, precision[0])
    np.testing.assert_array_equal(result.precision, precision.mean(axis=0))
    for k, score in enumerate(result.classes.values()):
        own = expected.eval["precision"][:, :, k, 0, -1]
        assert (own.mean(), own[0].mean()) == (score.AP, score.AP50)
        assert score.confidence == -1 or score.confidence in expected.eval["scores"][0, :, k, 0, -1]

    def by_place(matches):
        return {(match["image_id"], match["category_id"], tuple(match["aRng"])): match for match in matches if match}

    found, matches = by_place(scorer.match_detections(truth, rows, iou_type).eval_imgs), by_place(expected.evalImgs)
    assert found.keys() == matches.keys()
    for place, match in matches.items():
        for key in ("dtScores", "dtMatches", "dtIgnore", "gtIgnore", "gtMatches"):
            assert np.array_equal(np.array(found[place][key], float), np.array(match[key], float)), (place, key)


@pytest.mark.parametrize("iou_type", RESULT_FIELDS)
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("scene", SCENES)
def test_random_scenes_give_the_numbers_of_pycocotools(scene, seed, iou_type):
    truth, rows = random_scene(iou_type, seed, **SCENES[scene])
    assert_equal_to_the_referee(truth, rows, iou_type, [OTHER_SIGMA] * 3 if "keypoints" in SCENES[scene] else None)


@pytest.mark.parametrize("iou_type", FILES)
def test_real_files_give_the_numbers_of_pycocotools(shared, iou_type):
    folder = shared / "datasets" / "coco_eval_check"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    truth, rows = (json.loads((folder / name).read_text()) for name in FILES[iou_type])
    assert list(coco.score(truth, rows, iou_type).values()) == referee(truth, rows, iou_type).stats.tolist()


@pytest.mark.parametrize("kind", ["images", "categories"])
@pytest.mark.parametrize(
    "rename", [lambda key: key - 9, lambda key: key + 2**60, lambda key: key + 2**70], ids=["negative", "2^60", "2^70"]
)
def test_ids_of_any_size_keep_their_order(kind, rename):
    truth, rows = random_scene("bbox", seed=5, decimals=1)
    field = {"images": "image_id", "categories": "category_id"}[kind]
    for entry in truth[kind]:
        entry["id"] = rename(entry["id"])
    for item in [*truth["annotations"], *rows]:
        item[field] = rename(item[field])
    assert list(coco.score(truth, rows).values()) == referee(truth, rows, "bbox").stats.tolist()


def test_repeated_images_and_categories_count_once():
    truth, rows = random_scene("bbox", seed=6)
    expected = coco.score(truth, rows)
    assert coco.score(truth | {name: truth[name] * 2 for name in ("images", "categories")}, rows) == expected


def test_boxes_that_are_not_finite_match_nothing():
    truth, rows = random_scene("bbox", seed=7)
    unmatched = [row | {"bbox": [1e6, 1e6, 5, 5]} for row in rows]
    assert coco.measure(truth, [row | {"bbox": [np.nan] * 4} for row in rows]).metrics == coco.measure(truth, unmatched).metrics


@pytest.mark.parametrize("value", [None, True, "0.5", float("nan"), float("inf")], ids=str)
def test_a_score_that_is_no_finite_number_is_named(value):
    truth, rows = random_scene("bbox", seed=8)
    rows[4]["score"] = value
    with pytest.raises(DataError, match=f"detection 4: found score {value!r}, expected a finite number"):
        coco.score(truth, rows)


@pytest.mark.parametrize(
    ("iou_type", "value", "message"),
    [
        ("bbox", [1, 2, 3], "a list of 4 finite numbers"),
        ("bbox", [1, 2, float("nan"), 4], "a list of 4 finite numbers"),
        ("bbox", "1 2 3 4", "a list of 4 finite numbers"),
        ("keypoints", [float("inf"), 2, 1] * 17, "a list of finite numbers"),
        ("segm", [], "found no polygon, expected at least one"),
        ("segm", None, "found a segmentation of type NoneType"),
        ("segm", {"size": [HEIGHT, WIDTH], "counts": "zz"}, "found compressed run lengths with 'z'"),
        ("segm", {"size": [HEIGHT, WIDTH], "counts": [5, 5]}, "found run lengths over 10 pixels, expected 19200"),
        ("segm", {"size": [60, 80], "counts": [0, 4800]}, r"found run lengths of size \[60, 80\]"),
    ],
)
@pytest.mark.parametrize("kind", ["annotation", "detection"])
def test_values_that_cannot_be_compared_are_named(kind, iou_type, value, message):
    truth, rows = random_scene(iou_type, seed=9)
    (truth["annotations"] if kind == "annotation" else rows)[2] |= {RESULT_FIELDS[iou_type]: value}
    if iou_type == "bbox":
        truth["annotations"][2] |= {"area": 5.0}
    with pytest.raises(DataError, match=f"{kind} 2: .*{message}"):
        coco.score(truth, rows, iou_type)


def test_polygons_on_an_image_of_unknown_size_are_named():
    truth, rows = random_scene("segm", seed=10)
    truth["images"] = [{"id": image["id"]} for image in truth["images"]]
    assert coco.score(truth, rows, "segm")["AP"] >= 0
    truth["annotations"][1]["segmentation"] = [[10, 10, 90, 10, 90, 90]]
    with pytest.raises(DataError, match=r"annotation 1: .* an image without width and height, expected both"):
        coco.score(truth, rows, "segm")


@pytest.mark.parametrize("field", ["area", "iscrowd"])
def test_a_value_of_another_type_than_COCOs_is_named(field):
    truth, rows = random_scene("bbox", seed=11)
    truth["annotations"][3][field] = "much"
    with pytest.raises(DataError, match=rf"scoring bbox: annotations\[3\]: field '{field}'"):
        coco.measure(truth, rows)

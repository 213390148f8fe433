"""COCO JSON of predictions: pycocotools and `pack coco` read it."""

import json

import numpy as np
import pytest
from pycocotools.coco import COCO

from colour_engine import KEYPOINTS, write_weights
from packed import all_records
from yolor_ray.config import PackCocoConfig
from yolor_ray.config.network import TASKS
from yolor_ray.data.rle import decode_mask, encode_polygons
from yolor_ray.model.weights import load_weights
from yolor_ray.pack.run import pack
from yolor_ray.predict import sources
from yolor_ray.predict.part_file import detections_of
from yolor_ray.predict.run import predict


@pytest.fixture(params=[1, 64])
def output(request, settings, rich_weights, monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "PART_IMAGES", request.param)
    predict(settings(weights=rich_weights, format="coco"))
    return tmp_path / "out"


def test_the_file_has_every_detection_with_ids_from_one(output, rows):
    coco = COCO(str(output / "coco.json"))
    assert [image["file_name"] for image in coco.dataset["images"]] == ["0.png", "1.png", "2.png", "more/3.png", "more/4.png"]
    assert coco.getImgIds() == [1, 2, 3, 4, 5] and sorted(coco.getAnnIds()) == list(range(1, 11))
    assert {category["id"]: category["name"] for category in coco.dataset["categories"]} == {1: "red", 2: "blue"}
    row = rows(output)["1.png"]
    for annotation, box, name, confidence, mask in zip(
        coco.loadAnns(coco.getAnnIds(imgIds=2)), row["boxes_xyxy"], row["classes"], row["confidences"], row["masks"], strict=True
    ):
        x, y, width, height = annotation["bbox"]
        inside = decode_mask(mask.encode(), 200, 100)
        np.testing.assert_allclose([x, y, x + width, y + height], box, atol=0.02)
        assert coco.loadCats(annotation["category_id"])[0]["name"] == name
        assert annotation["score"] == pytest.approx(confidence) and annotation["iscrowd"] == 0
        assert (decode_mask(encode_polygons(annotation["segmentation"], 200, 100), 200, 100) != inside).mean() < 0.01
        assert annotation["num_keypoints"] == 1 and annotation["keypoints"][3:] == [0, 0, 0]
    assert json.loads((output / "coco.json").read_text())["images"][0]["labels"] == ["night"]


def test_the_file_is_packed_like_annotations(output, photos, tmp_path, rows):
    result = pack(PackCocoConfig(images=str(photos), annotations=str(output / "coco.json"), output=str(tmp_path / "packed")))
    assert (result["images"], result["boxes"], result["faults"]) == (5, 10, {})
    found = rows(output)
    for record in all_records(str(tmp_path / "packed")):
        np.testing.assert_allclose(record.objects.boxes_xyxy, found[record.name]["boxes_xyxy"], atol=0.02)
        assert record.objects.masks is not None and record.objects.keypoints is not None


def test_categories_list_their_own_keypoints_and_annotations_have_numbers_in_that_order(settings, tmp_path, rows):
    weights = write_weights(tmp_path / "weights", TASKS, class_keypoints={"red": KEYPOINTS[::-1]})
    predict(settings(weights=weights, format="coco"))
    output = tmp_path / "out"
    content = json.loads((output / "coco.json").read_text())
    red, blue = content["categories"]
    assert red["keypoints"] == list(KEYPOINTS[::-1]) and not {"keypoints", "skeleton"} & blue.keys()
    row = rows(output)["1.png"]
    assert [len(numbers) for numbers in row["keypoints"]] == [6 if name == "red" else 0 for name in row["classes"]]
    info = load_weights(weights)[1]
    read = detections_of(row, info)
    own = read.keypoints[row["classes"].index("red")]
    np.testing.assert_allclose(own[::-1].ravel(), row["keypoints"][row["classes"].index("red")], rtol=1e-6)
    assert not read.keypoints[row["classes"].index("blue")].any()
    for annotation in content["annotations"]:
        assert ("keypoints" in annotation) == ("num_keypoints" in annotation) == (annotation["category_id"] == red["id"])
    assert json.loads((output / "predict.json").read_text())["class_keypoints"] == {"red": list(KEYPOINTS[::-1])}

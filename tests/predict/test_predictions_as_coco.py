"""COCO JSON of predictions: pycocotools and `pack coco` read it."""

import json

import numpy as np
import pytest
from pycocotools.coco import COCO

from packed import all_records
from yolor_ray.config import PackCocoConfig
from yolor_ray.data.rle import decode_mask, encode_polygons
from yolor_ray.pack.run import pack
from yolor_ray.predict import sources
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

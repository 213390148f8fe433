"""Findings of a health report by their codes, on small datasets that have one kind of trouble each."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import packed
from yolor_ray.config import PackCheckConfig, PackYoloConfig
from yolor_ray.config.pack import FAULT_CODES, HEALTH_CODES
from yolor_ray.data.shards.records import Record, objects_from_boxes
from yolor_ray.errors import CheckFailed, ConfigError, DataError
from yolor_ray.pack.health.findings import ADVICE
from yolor_ray.pack.run import pack

ROOT = Path(__file__).resolve().parents[3]
CLASSES = {"classes": ("cat", "dog"), "image_classes": (), "keypoint_names": ()}


def image(seed: int, width: int = 96, height: int = 96) -> bytes:
    pixels = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)).resize((width, height))
    encoded = io.BytesIO()
    pixels.save(encoded, "PNG")
    return encoded.getvalue()


def record(seed: int, boxes=((20, 20, 60, 60), (30, 50, 50, 90)), labels=(0, 1), size=(96, 96)) -> Record:
    return Record(f"{seed:04d}.png", image(seed, *size), *size, objects_from_boxes(np.array(boxes), np.array(labels)))


def write(folder: Path, records, **names) -> str:
    packed.pack(str(folder), [list(records)], **CLASSES | names)
    return str(folder)


@pytest.fixture
def check(tmp_path):
    """Return a function that packs records and returns the findings of their health report by code."""

    def run(records, image_px=96, against="", **names) -> dict[str, dict]:
        url = write(tmp_path / "set", records, **names)
        result = pack(PackCheckConfig(url=url, image_px=image_px, against=against))
        report = json.loads((tmp_path / "set" / "health.json").read_text())
        assert result["health"] == f"{url}/health.html"
        assert result["findings"] == {finding["code"]: finding["count"] for finding in report["findings"]}
        return {finding["code"]: finding for finding in report["findings"]}

    return run


def test_a_sound_dataset_has_no_finding(check):
    assert check([record(seed) for seed in range(100)]) == {}


def test_leaks_are_found_by_content_and_near_leaks_by_appearance(check, tmp_path):
    train = [record(seed) for seed in range(100, 110)]
    darker = Image.fromarray((np.asarray(Image.open(io.BytesIO(train[3].image))) * 0.8).astype(np.uint8))
    copy = io.BytesIO()
    darker.save(copy, "JPEG", quality=70)
    url = write(tmp_path / "train", train)
    val = [record(0), replace(record(1), image=train[2].image), replace(record(2), image=copy.getvalue())]
    findings = check(val, against=url)
    assert (findings["leak"]["severity"], findings["leak"]["count"]) == ("error", 1)
    assert findings["leak"]["message"] == "Images that are in another set, too, byte for byte: 1 of 3."
    assert [(e["image"], e["record"], e["other_image"], e["other_dataset"]) for e in findings["leak"]["examples"]] == [
        ("0001.png", 1, "0102.png", url)
    ]
    assert [(e["image"], e["other_image"]) for e in findings["near_leak"]["examples"]] == [("0002.png", "0103.png")]
    assert "duplicate_image" not in findings and "near_duplicate" not in findings


def test_duplicates_within_a_dataset_say_when_they_are_annotated_differently(check):
    again = replace(record(5, boxes=((1, 1, 9, 9),), labels=(0,)), name="copy.png")
    findings = check([*(record(seed) for seed in range(10)), again])
    assert findings["duplicate_image"]["count"] == 1
    (example,) = findings["duplicate_image"]["examples"]
    assert (example["image"], example["other_image"]) == ("copy.png", "0005.png")
    assert example["text"] == "same bytes, but annotated with 1 and 2 objects"
    assert "near_duplicate" not in findings


def test_classes_that_differ_between_sets_are_named(check, tmp_path):
    url = write(tmp_path / "train", [record(1)], classes=("cat", "cow"))
    findings = check([record(2)], against=url)
    assert f"{url} has cow more and dog less" in findings["classes_differ"]["message"]


def test_boxes_are_judged_at_the_size_of_the_network_input(check):
    boxes = ((10, 10, 11, 40), (10, 10, 16, 16), (20, 20, 80, 80))
    records = [record(seed, boxes, (0, 0, 1)) for seed in range(3)]
    findings = check(records)
    assert (findings["too_small_boxes"]["count"], findings["tiny_boxes"]["count"]) == (3, 3)
    assert findings["too_small_boxes"]["examples"][0]["boxes_xyxy"] == [[10, 10, 11, 40]]
    findings = check(records, image_px=288)
    assert "too_small_boxes" not in findings and "tiny_boxes" not in findings


def test_sizes_and_shapes_are_compared_with_those_of_the_class(check):
    usual = [record(seed, ((30, 30, 50, 50), (20, 20, 24, 24)), (0, 1)) for seed in range(30)]
    odd = record(90, ((10, 10, 86, 86), (20, 20, 24, 24), (30, 30, 70, 40), (0, 0, 2, 2)), (0, 1, 0, 0))
    findings = check([*usual, odd])
    assert [(e["image"], e["text"]) for e in findings["unusual_size"]["examples"]] == [
        ("0090.png", "cat, 3.8 times larger than the median")
    ]
    assert [e["text"] for e in findings["unusual_shape"]["examples"]] == ["cat, 4.0 times wider for its height than the median"]


def test_boxes_of_one_object_are_found_of_one_class_and_of_two(check):
    boxes = ((10, 10, 50, 50), (10, 10, 50, 51), (60, 60, 90, 90), (60, 60, 90, 89), (10, 60, 40, 90))
    findings = check([record(0, boxes, (0, 0, 0, 1, 1))])
    assert (findings["annotated_twice"]["count"], findings["class_conflict"]["count"]) == (1, 1)
    assert findings["class_conflict"]["examples"][0]["text"] == "cat and dog"
    assert findings["annotated_twice"]["examples"][0]["boxes_xyxy"] == [[10, 10, 50, 50], [10, 10, 50, 51]]


def test_missing_rare_and_uneven_classes_are_named(check):
    records = [record(seed, ((20, 20, 60, 60),), (0,)) for seed in range(40)]
    findings = check([*records, record(99)], classes=("cat", "dog", "cow"))
    assert findings["class_without_boxes"]["message"] == "Classes without a box: cow."
    assert findings["few_boxes"]["message"] == "Classes with fewer than 20 boxes: dog (1)."
    assert "41 boxes of cat for each of dog" in findings["class_imbalance"]["message"]


def test_a_dataset_without_objects_and_one_of_crowds_are_errors(check):
    empty = replace(record(1), objects=objects_from_boxes(np.zeros((0, 4)), np.zeros(0)))
    assert check([empty, replace(empty, name="b.png", image=image(2))])["only_background"]["severity"] == "error"
    crowd = replace(record(1).objects, crowd=np.ones(2, bool))
    assert check([replace(record(1), objects=crowd)])["only_crowds"]["severity"] == "error"


def test_too_many_objects_for_coco_are_counted_by_image(check):
    many = [(4 * (n % 20), 5 * (n // 20), 4 * (n % 20) + 4, 5 * (n // 20) + 5) for n in range(101)]
    findings = check([record(0, many, [0] * 101), record(1)])
    assert (findings["detection_limit"]["count"], findings["detection_limit"]["examples"][0]["text"]) == (1, "101 objects")


def test_sizes_and_aspects_of_images_are_reported(check):
    findings = check([record(0), record(1, size=(400, 96)), record(2, size=(300, 240))], image_px=640)
    assert findings["extreme_aspect"]["examples"][0]["image"] == "0001.png"
    assert {"mixed_sizes", "enlarged_images", "few_images"} <= findings.keys()


def test_labels_tasks_and_individuals_are_counted(check):
    records = list(map(packed.rich_record, range(24)))
    findings = check(records, classes=("nothing", "square"), image_classes=("tall", "wide", "round"), keypoint_names=("a", "b", "c"))
    assert findings["label_without_images"]["message"] == "Labels that no image has: round."
    assert "6 for classify" in findings["partly_annotated"]["message"]
    alone = replace(records[1].objects, identities=np.array([77]))
    findings = check([*records[2:], replace(records[1], objects=alone)], image_classes=("tall", "wide"), keypoint_names=("a", "b", "c"))
    assert findings["single_identities"]["message"] == "Individuals on one image alone: 1 of 4."


def test_faults_of_packing_are_findings_with_the_place_on_their_image(yolo_set, tmp_path):
    sources = yolo_set(6, n2="0 0.5 0.5 0.5 0.5\n0 1.5 1.5 0.1 0.1\n", n3="1 0.5 0.5 0.2 0.2\n1 1.0 0.5 0.4 0.2\n")
    pack(PackYoloConfig(**sources, output=str(tmp_path / "out")))
    report = json.loads((tmp_path / "out" / "health.json").read_text())
    findings = {finding["code"]: finding for finding in report["findings"]}
    (example,) = findings["box_clipped"]["examples"]
    assert (findings["box_clipped"]["count"], example["record"] is None) == (1, False)
    np.testing.assert_allclose(example["boxes_xyxy"], [[0.8 * 64, 0.4 * 48, 64, 0.6 * 48]], atol=0.02)
    assert example["image"].endswith("003.txt:2")


def test_fail_on_raises_with_the_complete_result_only_for_codes_that_were_found(tmp_path):
    url = write(tmp_path / "set", [record(seed) for seed in range(3)])
    with pytest.raises(CheckFailed, match=r"set: found few_images \(3\), expected none with --fail_on; see .*health\.html") as raised:
        pack(PackCheckConfig(url=url, image_px=96, fail_on="leak, few_images"))
    assert raised.value.result["findings"]["few_images"] == 3
    assert pack(PackCheckConfig(url=url, image_px=96, fail_on="leak,zero_area_box"))["images"] == 3


def test_an_unknown_code_or_side_is_refused_before_anything_is_read():
    with pytest.raises(ConfigError, match=r"fail_on: found 'leaks,x', expected some of .*leak, .*zero_area_box"):
        PackCheckConfig(url="nowhere", fail_on="leak,leaks,x")
    with pytest.raises(ConfigError, match="image_px: found 0"):
        PackCheckConfig(url="nowhere", image_px=0)


def test_several_datasets_are_checked_one_by_one():
    with pytest.raises(ConfigError, match="url: found 'a,b', expected the URL of one packed dataset; check each of several"):
        PackCheckConfig(url="a,b")


def test_a_folder_without_dataset_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"dataset\.json: not found"):
        pack(PackCheckConfig(url=str(tmp_path)))


def test_every_code_has_advice_and_a_row_in_the_documentation():
    assert set(ADVICE) == set(HEALTH_CODES)
    page = (ROOT / "docs" / "data-health.md").read_text()
    assert [code for code in HEALTH_CODES if f"`{code}`" not in page] == []


def test_every_fault_code_of_the_readers_is_known_and_documented():
    sources = "".join(path.read_text() for path in sorted((ROOT / "yolor_ray" / "pack").rglob("*.py")))
    emitted = set(re.findall(r'ault\(\s*"([a-z_]+)"', sources))
    assert sorted(emitted - set(FAULT_CODES)) == [], "add the codes to FAULT_CODES in config/pack.py"
    page = (ROOT / "docs" / "data-formats.md").read_text()
    assert [code for code in FAULT_CODES if f"`{code}`" not in page] == []

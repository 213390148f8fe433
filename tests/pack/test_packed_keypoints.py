"""Keypoints belong to classes: each category of a COCO file has a list of its own, or none."""

import json

import pytest

from packed import all_records
from yolor_ray.config import PackAutoConfig, PackCocoConfig
from yolor_ray.data.shards.dataset import open_dataset
from yolor_ray.pack.run import pack

FLY = {"id": 1, "name": "fly", "keypoints": ["head", "tail"]}
BEE = {"id": 2, "name": "bee", "keypoints": ["sting", "head"]}
CELL = {"id": 3, "name": "cell"}


def annotation(number, **changes):
    return {"id": number, "image_id": 0, "category_id": 1, "bbox": [10 * number, 5, 9, 9], **changes}


@pytest.fixture
def write_coco(tmp_path, write_image):
    """Write an image and its COCO file below a folder; return the folder of the image and the file."""

    def run(folder, annotations, categories, seed=0):
        write_image(tmp_path / folder / "0.png", 100, 60, seed)
        content = {"images": [{"id": 0, "file_name": "0.png"}], "annotations": annotations, "categories": categories}
        file = tmp_path / folder / "_annotations.coco.json"
        file.write_text(json.dumps(content))
        return tmp_path / folder, file

    return run


@pytest.fixture
def pack_coco(write_coco, tmp_path):
    """Pack a COCO file; return the dataset, the keypoints of its objects, and the counted faults."""

    def run(annotations, categories=(FLY, BEE, CELL)):
        images, file = write_coco("images", annotations, list(categories))
        output = str(tmp_path / "out")
        result = pack(PackCocoConfig(images=str(images), annotations=str(file), output=output))
        [record] = all_records(output)
        return open_dataset(output), record, result["faults"]

    return run


def test_each_category_has_its_own_list(pack_coco):
    points = {1: [12, 6, 2, 13, 7, 1], 2: [22, 6, 2, 23, 7, 0]}
    dataset, record, faults = pack_coco([annotation(number, category_id=number, keypoints=points[number]) for number in (1, 2)])
    assert dataset.keypoint_names == ("head", "tail", "sting")
    assert dataset.class_keypoints == {"fly": ("head", "tail"), "bee": ("sting", "head")}
    assert record.objects.keypoints.tolist() == [
        [[12, 6, 2], [13, 7, 1], [0, 0, -1]],
        [[23, 7, 0], [0, 0, -1], [22, 6, 2]],
    ]
    assert (faults, record.tasks) == ({}, ("detect", "pose"))


def test_keypoints_of_the_class_are_unlabelled_where_an_object_has_none_and_others_are_unknown(pack_coco):
    _, record, _ = pack_coco([annotation(1, keypoints=[12, 6, 2, 0, 0, 0]), annotation(2, category_id=2), annotation(3, category_id=3)])
    assert record.objects.keypoints[1:, :, 2].tolist() == [[0, -1, 0], [-1, -1, -1]]


def test_the_numbers_of_an_object_must_be_those_of_its_own_category(pack_coco):
    given = [annotation(1, keypoints=[12, 6, 2]), annotation(2, category_id=2, keypoints=[22, 6, 2, 23, 7, 0])]
    _, record, faults = pack_coco(given, (FLY | {"keypoints": ["a", "b", "c"]}, BEE))
    assert faults == {"bad_keypoints": 1}
    assert record.objects.keypoints[:, :, 2].tolist() == [[0, 0, 0, -1, -1], [-1, -1, -1, 2, 0]]


def test_labelled_keypoints_of_a_category_without_names_are_a_fault_of_the_object_alone(pack_coco):
    cell = {"category_id": 3, "keypoints": [32, 6, 2, 0, 0, 0]}
    dataset, record, faults = pack_coco([annotation(1, keypoints=[12, 6, 2, 0, 0, 0]), annotation(3, **cell)])
    assert faults == {"bad_keypoints": 1}
    assert record.objects.keypoints[1, :, 2].tolist() == [-1, -1, -1]
    assert "cell" not in dataset.class_keypoints and record.tasks == ("detect", "pose")


def test_zeros_for_the_keypoints_of_a_category_without_names_are_no_fault(pack_coco):
    _, _, faults = pack_coco([annotation(1, keypoints=[12, 6, 2, 0, 0, 0]), annotation(3, category_id=3, keypoints=[0] * 51)])
    assert faults == {}


def test_the_digest_is_that_of_older_versions_where_every_class_has_all_keypoints(pack_coco):
    dataset, _, _ = pack_coco([annotation(1, keypoints=[12, 6, 2, 13, 7, 1])], (FLY, {**FLY, "id": 2, "name": "bee"}))
    assert dataset.class_keypoints == {"fly": ("head", "tail"), "bee": ("head", "tail")}
    # Computed by the version before classes had keypoints of their own.
    assert dataset.digest == "a121552e947b4e5f27c383b5af54eccf0b7d5b9bba77e72df788369cbaba66aa"


def test_splits_unite_the_keypoints_of_each_class(write_coco, tmp_path, caplog):
    write_coco("set/train", [annotation(1, keypoints=[12, 6, 2, 13, 7, 1])], [FLY, CELL])
    swapped = {**FLY, "keypoints": ["tail", "wing", "head"]}
    write_coco("set/valid", [annotation(1, category_id=2, keypoints=[22, 6, 2, 23, 7, 0]), annotation(2)], [BEE, swapped], seed=1)
    write_coco("set/test", [annotation(1, keypoints=[12, 6, 2, 0, 0, 0, 13, 7, 1])], [swapped], seed=2)
    output = str(tmp_path / "out")
    assert pack(PackAutoConfig(folder=str(tmp_path / "set"), output=output))["faults"] == {}
    names = ("head", "tail", "wing", "sting")
    for split, visibilities in (("train", [[2, 1, -1, -1]]), ("val", [[0, -1, -1, 2], [0, 0, 0, -1]]), ("test", [[1, 2, 0, -1]])):
        dataset = open_dataset(f"{output}/{split}")
        assert dataset.keypoint_names == names, split
        assert dataset.class_keypoints == {"fly": ("head", "tail", "wing"), "bee": ("sting", "head")}
        [record] = all_records(f"{output}/{split}")
        assert record.objects.keypoints[:, :, 2].tolist() == visibilities
    assert "event=keypoints_differ found='head, tail' all='head, tail, wing, sting'" in caplog.text

"""Keypoints by class in datasets: `dataset.json`, unions, relabelling, and copies of a part."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from packed import all_records, pack, square_record
from yolor_ray.data.rle import encode_runs
from yolor_ray.data.shards.dataset import HASH_KEY, open_dataset
from yolor_ray.data.shards.split import split_dataset
from yolor_ray.data.shards.union import open_datasets, relabel_to
from yolor_ray.errors import DataError

FLIES = {"classes": ("stone", "fly"), "keypoint_names": ("head", "tail"), "class_keypoints": {"fly": ("tail", "head")}}
BEES = {"classes": ("bee", "fly"), "keypoint_names": ("sting", "head"), "class_keypoints": {"bee": ("sting",), "fly": ("head",)}}


def record(index, keypoints=2):
    plain = square_record(index)
    points = np.full((1, keypoints, 3), (5, 5, 2), np.float32) if keypoints else None
    return replace(plain, objects=replace(plain.objects, keypoints=points), tasks=("detect", "pose") if keypoints else ("detect",))


@pytest.fixture
def datasets(tmp_path):
    flies, bees = (pack(str(tmp_path / name), [[record(i) for i in range(8)]], **names) for name, names in (("f", FLIES), ("b", BEES)))
    return flies, bees, pack(str(tmp_path / "cells"), [[record(9, 0)]], classes=("cell", "square"))


def test_a_dataset_keeps_the_keypoints_of_its_classes(datasets):
    for dataset, expected in zip(datasets, (FLIES["class_keypoints"], BEES["class_keypoints"], {}), strict=True):
        assert open_dataset(dataset.url).class_keypoints == expected


def rewrite(dataset, **changes):
    """Change keys of a dataset.json; None removes a key."""
    file = Path(dataset.url, "dataset.json")
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None and key != HASH_KEY}))


def test_every_class_of_an_older_dataset_has_all_keypoints(datasets):
    rewrite(datasets[0], class_keypoints=None)
    assert open_dataset(datasets[0].url).class_keypoints == {"stone": ("head", "tail"), "fly": ("head", "tail")}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["fly"], "expected lists of names by class name"),
        ({"fly": "head"}, "expected lists of names by class name"),
        ({"fly": 3}, "expected lists of names by class name"),
        ({"bee": ["head"]}, "the class 'bee', expected names among classes"),
        ({"fly": ["head", "wing"]}, "'wing' for 'fly', expected names among keypoint_names"),
        ({"fly": ["head", ["tail"]]}, r"\['tail'\] for 'fly', expected names among keypoint_names"),
        ({"fly": ["head", "head", "tail"]}, "expected one or more different names"),
        ({"fly": ["head", "tail"], "stone": []}, "expected one or more different names"),
        ({"fly": ["head"]}, "no class with 'tail', expected each of keypoint_names for some class"),
    ],
)
def test_impossible_keypoints_of_classes_are_refused_by_name(datasets, value, message):
    rewrite(datasets[0], class_keypoints=value)
    with pytest.raises(DataError, match=f"damaged manifest .*class_keypoints with .*{message}"):
        open_dataset(datasets[0].url)


def test_a_union_unites_the_keypoints_of_each_class_by_name(datasets):
    union = open_datasets(",".join(dataset.url for dataset in datasets))
    assert union.classes == ("stone", "fly", "bee", "cell", "square")
    assert union.keypoint_names == ("head", "tail", "sting")
    assert union.class_keypoints == {"fly": ("tail", "head"), "bee": ("sting",)}


def test_a_dataset_is_relabelled_to_the_keypoints_of_weights(datasets):
    bees = datasets[1]
    union = open_datasets(",".join(dataset.url for dataset in datasets))
    for dataset in datasets:
        assert relabel_to(dataset, union).class_keypoints == union.class_keypoints
    with pytest.raises(DataError, match="found keypoints sting of bee, expected some of none"):
        relabel_to(bees, replace(union, class_keypoints={"fly": ("head", "tail", "sting")}))
    # Where all classes have all keypoints, nobody said which class has which.
    plain = replace(bees, class_keypoints={})
    assert relabel_to(plain, union).class_keypoints == union.class_keypoints


def test_the_digest_depends_on_the_keypoints_of_classes_and_a_copy_keeps_them(datasets, tmp_path):
    flies = datasets[0]
    kept, held = split_dataset(flies, str(tmp_path / "held"), 0.3)
    assert kept.class_keypoints == held.class_keypoints == flies.class_keypoints
    plain = replace(flies, class_keypoints={}, url=flies.url, digest="another")
    other, _ = split_dataset(plain, str(tmp_path / "plain"), 0.3)
    assert [shard.sha256 for shard in other.shards] == [shard.sha256 for shard in kept.shards]
    assert other.digest != kept.digest


def test_an_object_of_unknown_mask_is_written_and_read(tmp_path):
    plain = square_record(0)
    objects = replace(plain.objects, **{name: np.repeat(getattr(plain.objects, name), 2, axis=0) for name in ("boxes_xyxy", "labels")})
    objects = replace(objects, crowd=np.zeros(2, bool), areas=np.ones(2, np.float32), masks=(None, encode_runs([9, 64 * 48 - 9], 64, 48)))
    pack(str(tmp_path / "good"), [[replace(plain, objects=objects)]])
    assert all_records(str(tmp_path / "good"))[0].objects.masks == objects.masks
    pack(str(tmp_path / "bad"), [[replace(plain, objects=replace(objects, masks=(None, encode_runs([9, 5], 64, 48))))]])
    with pytest.raises(DataError, match=r"row 0, column masks: .* expected run lengths over all pixels"):
        all_records(str(tmp_path / "bad"))

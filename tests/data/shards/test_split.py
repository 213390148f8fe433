"""A held-out dataset: each image is on one side, chosen by its content alone."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from packed import all_records, pack, square_record
from yolor_ray.data.shards import image_hashes as hashing
from yolor_ray.data.shards.dataset import open_dataset
from yolor_ray.data.shards.image_hashes import image_hashes, is_held_out, record_name
from yolor_ray.data.shards.split import split_dataset
from yolor_ray.data.shards.union import unite
from yolor_ray.errors import DataError


def test_an_image_is_held_out_by_the_first_64_bits_of_its_sha_256():
    images = [bytes([number]) * 5 for number in range(200)]
    fractions = [int(hashlib.sha256(image).hexdigest()[:16], 16) / 2**64 for image in images]
    assert [is_held_out(image, 0.25) for image in images] == [fraction < 0.25 for fraction in fractions]
    assert 25 < sum(is_held_out(image, 0.25) for image in images) < 75


def test_each_image_is_on_the_side_that_its_content_chooses(squares, tmp_path: Path):
    train, val = split_dataset(squares, str(tmp_path), 0.2)
    records = all_records(squares.url)
    expected = [[record.name for record in records if is_held_out(record.image, 0.2) is side] for side in (False, True)]
    assert [[record.name for record in all_records(part.url)] for part in (train, val)] == expected
    assert train.images + val.images == squares.images == train.boxes + val.boxes and 10 < val.images < 35
    assert (train.classes, val.tasks, train.boxes_per_class["square"]) == (squares.classes, squares.tasks, train.images)


def test_all_annotations_are_copied(rich, tmp_path: Path):
    train, val = split_dataset(rich, str(tmp_path), 0.4)
    copies = {record.name: record for part in (train, val) for record in all_records(part.url)}
    for record in all_records(rich.url):
        copy = copies[record.name]
        assert (copy.image, copy.width, copy.height, copy.tasks, copy.camera) == (
            *(record.image, record.width, record.height),
            *(record.tasks, record.camera),
        )
        assert copy.objects.masks == record.objects.masks and copy.image_labels.tolist() == record.image_labels.tolist()
        for name in ("boxes_xyxy", "labels", "crowd", "areas", "keypoints", "identities"):
            np.testing.assert_array_equal(getattr(copy.objects, name), getattr(record.objects, name), name)
    assert {"pose", "segment", "embed", "classify"} <= set(train.tasks)


def test_the_same_dataset_and_share_are_copied_once(squares, tmp_path: Path, monkeypatch):
    first = split_dataset(squares, str(tmp_path), 0.2)
    monkeypatch.setattr("yolor_ray.data.shards.split.encode_shard", lambda *_: pytest.fail("copied again"))
    assert split_dataset(replace(squares, url=f"{squares.url}/"), str(tmp_path), 0.2) == first


def test_a_small_dataset_holds_out_at_least_one_image(tmp_path: Path):
    small = pack(str(tmp_path / "small"), [[square_record(index) for index in range(3)]])
    train, val = split_dataset(small, str(tmp_path / "copies"), 1e-9)
    assert (train.images, val.images) == (2, 1)


def test_a_dataset_of_one_content_cannot_be_split(tmp_path: Path):
    same = pack(str(tmp_path / "same"), [[replace(square_record(0), name=f"{index}.png") for index in range(4)]])
    with pytest.raises(DataError, match=r"found 4 images, and a hold_out of .* takes all or none of them; expected different images"):
        split_dataset(same, str(tmp_path / "copies"), 0.5)


def test_equal_images_of_a_union_stay_on_one_side(squares, tmp_path: Path):
    again = pack(str(tmp_path / "again"), [[replace(square_record(index), name=f"copy-{index}.png") for index in range(60)]])
    train, val = split_dataset(unite([squares, again]), str(tmp_path / "copies"), 0.3)
    sides = [image_hashes(part, str(tmp_path)) for part in (train, val)]
    assert len(train.members) == len(val.members) == 2 and sum(map(len, sides)) == 160
    assert not set(sides[0].tolist()) & set(sides[1].tolist())


def test_hashes_are_in_the_order_of_the_records_and_read_once(squares, tmp_path: Path, monkeypatch):
    hashes = image_hashes(squares, str(tmp_path))
    expected = [int(hashlib.sha256(record.image).hexdigest()[:16], 16) for record in all_records(squares.url)]
    assert hashes.tolist() == expected
    assert record_name(squares, 71) == all_records(squares.url)[71].name
    monkeypatch.setattr(hashing, "read_row_group", lambda *_: pytest.fail("read again"))
    assert image_hashes(open_dataset(squares.url), str(tmp_path)).tolist() == expected


def test_the_hashes_of_a_union_are_those_of_its_members(rich, squares, tmp_path: Path):
    union = image_hashes(unite([rich, squares]), str(tmp_path))
    assert union.tolist() == [*image_hashes(rich, str(tmp_path)).tolist(), *image_hashes(squares, str(tmp_path)).tolist()]


def test_a_share_that_takes_all_images_is_refused(tmp_path: Path):
    small = pack(str(tmp_path / "small"), [[square_record(index) for index in range(3)]])
    with pytest.raises(DataError, match=r"found 3 images, and a hold_out of 0\.9999 takes all .* a share that leaves some"):
        split_dataset(small, str(tmp_path / "copies"), 0.9999)


def test_shares_that_differ_little_have_their_own_copies(squares, tmp_path: Path):
    first, second = (split_dataset(squares, str(tmp_path), share)[1].url for share in (0.20001, 0.20002))
    assert first != second


def test_a_member_of_a_union_may_hold_out_nothing(squares, tmp_path: Path):
    records = [square_record(index) for index in range(1000, 1040)]
    kept = [record for record in records if not is_held_out(record.image, 0.2)][:1]
    alone = pack(str(tmp_path / "alone"), [kept])
    train, val = split_dataset(unite([squares, alone]), str(tmp_path / "copies"), 0.2)
    assert train.images + val.images == squares.images + 1
    assert len(image_hashes(val, str(tmp_path))) == val.images


def test_a_copy_that_was_interrupted_is_completed(squares, tmp_path: Path, monkeypatch):
    def end(_dataset) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("yolor_ray.data.shards.split.write_dataset", end)
        split_dataset(squares, str(tmp_path), 0.2)
    train, val = split_dataset(squares, str(tmp_path), 0.2)
    assert train.images + val.images == squares.images and len(all_records(val.url)) == val.images

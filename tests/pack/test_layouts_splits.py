"""Splits of a folder: the held-out validation set, shared images, absent splits, and one order of classes."""

import json
import logging
import shutil

import pytest

from exports import CLASSES, objects_of, packed_objects, write_coco, write_images, write_labels, write_voc
from packed import all_records
from yolor_ray.config import PackAutoConfig, PackVocConfig
from yolor_ray.data.shards.dataset import open_dataset
from yolor_ray.data.shards.image_hashes import content_fraction, is_held_out
from yolor_ray.errors import DataError
from yolor_ray.pack.run import pack

COUNT = 40
NAMES = f"names: {list(CLASSES)}\n"


@pytest.fixture
def root(tmp_path, write_image):
    """An export of 40 images in one folder, with data.yaml."""
    root = tmp_path / "export"
    write_images(write_image, root / "train" / "images", range(COUNT))
    write_labels(root / "train" / "labels", range(COUNT))
    (root / "data.yaml").write_text(f"train: train/images\n{NAMES}")
    return root


@pytest.fixture
def run(tmp_path):
    """Pack a folder and return the images of each split by number."""

    def pack_folder(root, name="out", **options):
        result = pack(PackAutoConfig(folder=str(root), output=str(tmp_path / name), **options))
        assert result["faults"] == {}
        return {split: set(packed_objects(part["output"], CLASSES)) for split, part in result["splits"].items()}

    return pack_folder


def test_a_share_of_the_training_images_is_held_out_by_their_bytes(run, root, tmp_path):
    splits = run(root, hold_out=0.25)
    held = {number for number in range(COUNT) if is_held_out((root / "train" / "images" / f"{number:03d}.png").read_bytes(), 0.25)}
    assert 0 < len(held) < COUNT / 2
    assert splits == {"train": set(range(COUNT)) - held, "val": held}
    assert packed_objects(str(tmp_path / "out" / "val"), CLASSES) == {number: objects_of(number) for number in held}
    assert {split: part for split, part in run(root, "none", hold_out=0).items()} == {"train": set(range(COUNT))}


def test_another_layout_more_images_and_copies_change_no_side(run, root, tmp_path, write_image):
    before = run(root, hold_out=0.25)
    other = tmp_path / "other"
    write_images(write_image, other, range(COUNT + 20))
    write_coco(other / "annotations.json", range(COUNT + 20))
    after = run(other, "other_out", hold_out=0.25)
    assert before["val"] <= after["val"] and before["train"] <= after["train"]
    held = min(before["val"])
    shutil.copy(root / "train" / "images" / f"{held:03d}.png", root / "train" / "images" / "900.png")
    (root / "train" / "labels" / "900.txt").write_text("")
    result = pack(PackAutoConfig(folder=str(root), output=str(tmp_path / "copies"), hold_out=0.25))
    assert {900, held} <= set(packed_objects(result["splits"]["val"]["output"], CLASSES))


def test_one_image_of_a_small_set_is_held_out(run, tmp_path, write_image):
    few = tmp_path / "few"
    write_images(write_image, few / "images", range(5))
    write_labels(few / "labels", range(5))
    (few / "classes.txt").write_text("\n".join(CLASSES))
    fractions = [content_fraction((few / "images" / f"{number:03d}.png").read_bytes()) for number in range(5)]
    first = fractions.index(min(fractions))
    assert run(few, hold_out=0.001) == {"train": set(range(5)) - {first}, "val": {first}}


def test_a_set_of_one_content_cannot_be_divided(run, tmp_path, write_image):
    for name in ("0.png", "1.png"):
        write_image(tmp_path / "equal" / name)
        (tmp_path / "equal" / name).with_suffix(".txt").write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "equal" / "classes.txt").write_text("dog")
    with pytest.raises(DataError, match=r"found 2 images, and a hold_out of .* takes all of them; expected different images"):
        run(tmp_path / "equal")


def test_the_same_command_again_succeeds_and_changes_nothing(run, root, tmp_path):
    first = run(root)
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.*")}
    assert run(root) == first
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.*")} == files


def test_an_output_inside_the_folder_is_no_part_of_the_layout(run, root, tmp_path):
    first = run(tmp_path, "packed")
    assert run(tmp_path, "packed") == first and len(first["train"] | first["val"]) == COUNT


def test_a_test_split_stays_where_the_validation_split_is_held_out(run, root, write_image):
    write_images(write_image, root / "test" / "images", range(50, 53))
    write_labels(root / "test" / "labels", range(50, 53))
    (root / "data.yaml").write_text(f"train: train/images\nval: valid/images\ntest: test/images\n{NAMES}")
    splits = run(root, hold_out=0.25)
    assert splits["test"] == {50, 51, 52} and splits["train"] | splits["val"] == set(range(COUNT))


def test_an_empty_list_of_a_split_is_no_split(run, root, tmp_path, write_image, caplog):
    """CVAT writes such lists."""
    (root / "val.txt").write_text("\n")
    (root / "data.yaml").write_text(f"train: train/images\nval: val.txt\n{NAMES}")
    assert run(root)["val"]
    write_images(write_image, tmp_path / "voc" / "JPEGImages", range(8))
    write_voc(tmp_path / "voc" / "Annotations", range(8))
    (tmp_path / "voc" / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "voc" / "ImageSets" / "Main" / "train.txt").write_text("".join(f"{number:03d}\n" for number in range(8)))
    (tmp_path / "voc" / "ImageSets" / "Main" / "val.txt").write_text("")
    result = pack(PackAutoConfig(folder=str(tmp_path / "voc"), output=str(tmp_path / "voc_out"), hold_out=0))
    assert set(result["splits"]) == {"train"}
    assert "event=split_left_out split=val reason='found no image'" in caplog.text


def test_absent_splits_and_a_test_split_without_labels_are_left_out_with_a_warning(run, root, write_image, caplog):
    write_images(write_image, root / "test" / "images", range(50, 53))
    (root / "data.yaml").write_text(f"train: ../train/images\nval: ../valid/images\ntest: ../test/images\n{NAMES}")
    assert set(run(root, hold_out=0.25)) == {"train", "val"}
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("train: found nothing at" in message and message.endswith(f"took {root}/train/images'") for message in messages)
    assert any("val: found nothing at" in message and "left out" in message for message in messages)
    assert any("test: found no label file for" in message for message in messages)


def test_a_validation_split_with_the_training_images_is_replaced_by_held_out_images(run, root, caplog):
    (root / "data.yaml").write_text(f"train: train/images\nval: train/images\n{NAMES}")
    splits = run(root, hold_out=0.25)
    assert splits["val"] and not splits["val"] & splits["train"]
    assert "event=split_left_out split=val reason='its images are those of train'" in caplog.text


def test_a_training_folder_that_contains_the_validation_folder_loses_the_shared_images(run, tmp_path, write_image, caplog):
    root = tmp_path / "nested"
    write_images(write_image, root / "images", range(8))
    write_labels(root / "labels", range(8))
    write_images(write_image, root / "images" / "val", range(8, 10))
    write_labels(root / "labels" / "val", range(8, 10))
    (root / "data.yaml").write_text(f"train: images\nval: images/val\n{NAMES}")
    assert run(root) == {"train": set(range(8)), "val": {8, 9}}
    assert "event=shared_images split=val images=2 left_out_of=train" in caplog.text


def test_images_of_one_name_in_several_folders_of_a_split_all_stay(run, tmp_path, write_image):
    for seed, folder in enumerate(("a", "b")):
        write_image(tmp_path / "x" / folder / "images" / "1.png", seed=seed)
        write_labels(tmp_path / "x" / folder / "labels", [0, 1])
        (tmp_path / "x" / folder / "labels" / "001.txt").rename(tmp_path / "x" / folder / "labels" / "1.txt")
        (tmp_path / "x" / folder / "labels" / "000.txt").unlink()
    (tmp_path / "x" / "data.yaml").write_text(f"train: [a/images, b/images]\n{NAMES}")
    run(tmp_path / "x", hold_out=0)
    assert sorted(record.name for record in all_records(str(tmp_path / "out" / "train"))) == ["a/images/1.png", "b/images/1.png"]


def test_a_data_yaml_may_name_folders_elsewhere(run, root, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "dogs.yaml").write_text(f"path: ../export\ntrain: train/images\n{NAMES}")
    assert run(tmp_path / "configs" / "dogs.yaml", hold_out=0) == {"train": set(range(COUNT))}


def test_a_split_without_a_class_has_the_classes_of_the_others(run, tmp_path, write_image):
    """VOC XML files name only classes that occur; COCO files may have fewer categories."""
    for split, numbers in (("train", (0, 3)), ("valid", (1,))):
        write_images(write_image, tmp_path / "voc" / split, numbers)
        write_voc(tmp_path / "voc" / split, numbers)
        write_images(write_image, tmp_path / "coco" / split, numbers)
        write_coco(tmp_path / "coco" / split / "_annotations.coco.json", numbers, ("cat", "dog") if split == "train" else ("ant", "cat"))
    for layout, classes in (("voc", ("ant", "cat", "dog")), ("coco", ("cat", "dog", "ant"))):
        result = pack(PackAutoConfig(folder=str(tmp_path / layout), output=str(tmp_path / f"{layout}_out")))
        for split, numbers in (("train", (0, 3)), ("val", (1,))):
            url = result["splits"][split]["output"]
            assert open_dataset(url).classes == classes
            assert packed_objects(url, classes) == {number: objects_of(number) for number in numbers}


def test_only_a_validation_split_is_packed_as_such(run, tmp_path, write_image, caplog):
    write_images(write_image, tmp_path / "coco" / "val2017", range(4))
    write_coco(tmp_path / "coco" / "annotations" / "instances_val2017.json", range(4))
    assert run(tmp_path / "coco") == {"val": set(range(4))}
    assert "reason='found no training split'" in caplog.text


def test_a_coco_test_file_without_annotations_is_left_out(run, tmp_path, write_image, caplog):
    for split in ("train", "val", "test"):
        write_images(write_image, tmp_path / "coco" / split, range(4))
        write_coco(tmp_path / "coco" / f"{split}.json", range(4))
    content = json.loads((tmp_path / "coco" / "test.json").read_text())
    (tmp_path / "coco" / "test.json").write_text(json.dumps(content | {"annotations": []}))
    assert set(run(tmp_path / "coco")) == {"train", "val"}
    assert "found no annotation, so the split test is left out" in caplog.text


def test_images_outside_the_folders_of_splits_are_left_out_with_a_warning(run, tmp_path, write_image, caplog):
    for folder in ("images/train", "images/val", "images/unlabelled"):
        write_images(write_image, tmp_path / "yolo" / folder, range(3))
    for split in ("train", "val"):
        write_labels(tmp_path / "yolo" / "labels" / split, range(3))
    (tmp_path / "yolo" / "classes.txt").write_text("\n".join(CLASSES))
    assert run(tmp_path / "yolo") == {"train": {0, 1, 2}, "val": {0, 1, 2}}
    assert "found 3 images in no folder of a split, such as images/unlabelled/000.png; left out" in caplog.text


def test_the_blood_cells_are_packed_as_by_three_commands(shared, tmp_path):
    folder = shared / "datasets" / "bccd"
    result = pack(PackAutoConfig(folder=str(folder), output=str(tmp_path / "auto")))
    assert {split: part["images"] for split, part in result["splits"].items()} == {"train": 205, "val": 87, "test": 72}
    assert result["images"] == 364 and result["boxes"] == 4886 and result["faults"] == {"zero_area_box": 2}
    sources = {"images": str(folder / "JPEGImages"), "annotations": str(folder / "Annotations")}
    one = pack(PackVocConfig(**sources, split_file=str(folder / "ImageSets" / "Main" / "test.txt"), output=str(tmp_path / "one")))
    assert open_dataset(one["output"]).digest == open_dataset(str(tmp_path / "auto" / "test")).digest

"""Every layout of one set of images gives the same datasets, with one order of classes."""

import shutil
from pathlib import Path

import pytest

from exports import CLASSES, NUMBERS, file_name, objects_of, packed_objects, write_coco, write_images, write_labels, write_voc
from yolor_ray.config import PackAutoConfig
from yolor_ray.data.shards.dataset import open_dataset
from yolor_ray.pack.run import pack

ROBOFLOW = {"train": "train", "val": "valid", "test": "test"}
NAMES = f"nc: 3\nnames: {list(CLASSES)}\n"


class Export:
    """A folder to write an export to."""

    def __init__(self, root: Path, write_image) -> None:
        self.root = root
        self.write_image = write_image

    def images(self, folder: str, *splits: str) -> None:
        write_images(self.write_image, self.root / folder, [number for split in splits for number in NUMBERS[split]])

    def labels(self, folder: str, *splits: str) -> None:
        write_labels(self.root / folder, [number for split in splits for number in NUMBERS[split]])

    def voc(self, folder: str, *splits: str) -> None:
        write_voc(self.root / folder, [number for split in splits for number in NUMBERS[split]])

    def text(self, name: str, text: str) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text)


@pytest.fixture
def export(tmp_path, write_image):
    return Export(tmp_path / "export", write_image)


def roboflow_yolo(export):
    """The paths in data.yaml are those of Roboflow: relative to a folder that does not exist."""
    for split, folder in ROBOFLOW.items():
        export.images(f"{folder}/images", split)
        export.labels(f"{folder}/labels", split)
    export.text("data.yaml", f"train: ../train/images\nval: ../valid/images\ntest: ../test/images\n{NAMES}\nroboflow:\n  version: 1\n")
    export.text("README.roboflow.txt", "Exported")
    export.text("README.dataset.txt", "Dogs")


def ultralytics(export):
    for split in NUMBERS:
        export.images(f"images/{split}", split)
        export.labels(f"labels/{split}", split)
    export.text(
        "dogs.yaml", "path: ../datasets/dogs\ntrain: images/train\nval: images/val\ntest: images/test\nnames: {0: dog, 1: cat, 2: ant}\n"
    )


def ultralytics_lists(export):
    """train is a list of folders, val and test are text files that list images."""
    export.images("a/images", "train")
    export.labels("a/labels", "train")
    export.images("b/images/x", "val", "test")
    export.labels("b/labels/x", "val", "test")
    for number in (0, 1, 2):
        for kind, suffix in (("images", "png"), ("labels", "txt")):
            (export.root / f"c/{kind}").mkdir(parents=True, exist_ok=True)
            shutil.move(export.root / f"a/{kind}/{number:03d}.{suffix}", export.root / f"c/{kind}/{number:03d}.{suffix}")
    export.text("val.txt", "".join(f"./b/images/x/{file_name(number)}\n" for number in NUMBERS["val"]))
    export.text("test.txt", "".join(f"/content/dogs/b/images/x/{file_name(number)}\n" for number in NUMBERS["test"]))
    export.text("data.yaml", f"path: .\ntrain: [a/images, c/images]\nval: val.txt\ntest: test.txt\n{NAMES}")


def colab(export):
    """The paths are absolute paths of another machine, and the folders of splits hold images and labels."""
    for split, folder in ROBOFLOW.items():
        export.images(f"{folder}/images", split)
        export.labels(f"{folder}/labels", split)
    export.text("data.yaml", f"train: /content/dogs-1/train\nval: /content/dogs-1/valid\ntest: /content/dogs-1/test\n{NAMES}")


def darknet(export):
    """CVAT's YOLO 1.1: label files beside images, lists whose paths begin with a folder that the archive lacks."""
    export.images("obj_train_data", *NUMBERS)
    export.labels("obj_train_data", *NUMBERS)
    for split, name in (("train", "train"), ("val", "valid"), ("test", "test")):
        export.text(f"{name}.txt", "".join(f"data/obj_train_data/{file_name(number)}\n" for number in NUMBERS[split]))
    export.text("obj.names", "\n".join(CLASSES) + "\n")
    export.text(
        "obj.data",
        "classes = 3\ntrain = data/train.txt\nvalid = data/valid.txt\ntest = data/test.txt\nnames = data/obj.names\nbackup = backup/\n",
    )


def plain_yolo(export):
    """LabelImg writes a file of classes into each folder."""
    for split in NUMBERS:
        export.images(f"images/{split}", split)
        export.labels(f"labels/{split}", split)
        export.text(f"labels/{split}/classes.txt", "\n".join(CLASSES))


def plain_yolo_by_split(export):
    for split, folder in ROBOFLOW.items():
        export.images(f"{folder}/images", split)
        export.labels(f"{folder}/labels", split)
    export.text("classes.txt", "\n".join(CLASSES))


def plain_yolo_beside(export):
    for split, folder in ROBOFLOW.items():
        export.images(folder, split)
        export.labels(folder, split)
        export.text(f"{folder}/_darknet.labels", "\n".join(CLASSES))


def plain_yolo_lists(export):
    export.images("images", *NUMBERS)
    export.labels("labels", *NUMBERS)
    export.text("classes.txt", "\n".join(CLASSES))
    for split, numbers in NUMBERS.items():
        export.text(f"{split}.txt", "".join(f"images/{file_name(number)}\n" for number in numbers))


def roboflow_coco(export):
    for split, folder in ROBOFLOW.items():
        export.images(folder, split)
        write_coco(export.root / folder / "_annotations.coco.json", NUMBERS[split])
    export.text("README.roboflow.txt", "Exported")


def coco_instances(export):
    """As on cocodataset.org, with the files of other tasks."""
    for split in NUMBERS:
        export.images(f"{split}2017", split)
        write_coco(export.root / f"annotations/instances_{split}2017.json", NUMBERS[split])
        write_coco(export.root / f"annotations/person_keypoints_{split}2017.json", NUMBERS[split])
        export.text(f"annotations/captions_{split}2017.json", '{"images": [], "annotations": []}')


def coco_in_images(export):
    for split in NUMBERS:
        export.images(f"images/{split}", split)
        write_coco(export.root / f"annotations/{split}.json", NUMBERS[split])


def coco_one_folder(export):
    """All images in one folder, one JSON file per split beside it, and one of everything."""
    export.images("images", *NUMBERS)
    for split, numbers in NUMBERS.items():
        write_coco(export.root / f"{split}.json", numbers, prefix=".\\images\\"[2:].replace("\\", "/"))
    write_coco(export.root / "all.json", range(19))


def coco_of_other_ids(export):
    """The categories of the splits have other ids, and one split lacks a class."""
    for split, folder in ROBOFLOW.items():
        export.images(folder, split)
        write_coco(export.root / folder / "_annotations.coco.json", NUMBERS[split], CLASSES if split == "train" else CLASSES[::-1])


def voc(export):
    export.images("JPEGImages", *NUMBERS)
    export.voc("Annotations", *NUMBERS)
    for split, numbers in NUMBERS.items():
        export.text(f"ImageSets/Main/{split}.txt", "".join(f"{number:03d}\n" for number in numbers))
        export.text(f"ImageSets/Main/dog_{split}.txt", "".join(f"{number:03d}  1\n" for number in numbers))
    export.text("ImageSets/Main/trainval.txt", "".join(f"{number:03d}\n" for number in (*NUMBERS["train"], *NUMBERS["val"])))


def voc_devkit(export):
    export.root = export.root / "VOCdevkit" / "VOC2012"
    voc(export)
    export.root = export.root.parents[1]


def voc_lists_at_the_top(export):
    export.images("JPEGImages", *NUMBERS)
    export.voc("Annotations", *NUMBERS)
    for split, numbers in NUMBERS.items():
        export.text(f"{split}.txt", "".join(f"{file_name(number)}\n" for number in numbers))


def roboflow_voc(export):
    for split, folder in ROBOFLOW.items():
        export.images(folder, split)
        export.voc(folder, split)


def voc_by_split(export):
    for split in NUMBERS:
        export.images(f"images/{split}", split)
        export.voc(f"annotations/{split}", split)


YOLO = (
    roboflow_yolo,
    ultralytics,
    ultralytics_lists,
    colab,
    darknet,
    plain_yolo,
    plain_yolo_by_split,
    plain_yolo_beside,
    plain_yolo_lists,
)
COCO = (roboflow_coco, coco_instances, coco_in_images, coco_one_folder, coco_of_other_ids)
VOC = (voc, voc_devkit, voc_lists_at_the_top, roboflow_voc, voc_by_split)


@pytest.mark.parametrize("write", [*YOLO, *COCO, *VOC], ids=lambda write: write.__name__)
def test_each_layout_gives_the_same_splits_and_objects_without_a_fault(export, tmp_path, write):
    write(export)
    output = str(tmp_path / "out")
    result = pack(PackAutoConfig(folder=str(export.root), output=output))
    classes = tuple(sorted(CLASSES)) if write in VOC else CLASSES
    assert {split: part["images"] for split, part in result["splits"].items()} == {"train": 12, "val": 4, "test": 3}
    for split, numbers in NUMBERS.items():
        dataset = open_dataset(f"{output}/{split}")
        assert dataset.classes == classes
        assert packed_objects(dataset.url, classes) == {number: objects_of(number) for number in numbers}
    assert result["faults"] == {} and result["images"] == 19 and result["boxes"] == 36 and result["output"] == output

"""Layouts that are unknown, ambiguous or broken are refused by a message that says what was found; nothing is guessed."""

import pytest

from exports import CLASSES, write_coco, write_images, write_labels, write_voc
from yolor_ray.config import PackAutoConfig
from yolor_ray.errors import ConfigError, DataError
from yolor_ray.io import storage
from yolor_ray.pack.run import pack

NAMES = f"names: {list(CLASSES)}\n"


@pytest.fixture
def refuse(tmp_path):
    """Return a function that packs a folder, checks that the folder is refused, and returns the message."""

    def run(folder, **options):
        with pytest.raises(DataError) as caught:
            pack(PackAutoConfig(folder=str(folder), output=str(tmp_path / "out"), **options))
        assert not storage.exists(str(tmp_path / "out" / "train" / "dataset.json"))
        return str(caught.value)

    return run


@pytest.fixture
def yolo(tmp_path, write_image):
    """An images folder and a labels folder of 8 images."""
    root = tmp_path / "export"
    write_images(write_image, root / "images", range(8))
    write_labels(root / "labels", range(8))
    return root


def test_an_unknown_folder_is_refused_with_its_content_and_the_expected_layouts(refuse, tmp_path, write_image):
    for folder in ("cats", "dogs"):
        write_images(write_image, tmp_path / "photos" / folder, range(3))
    message = refuse(tmp_path / "photos")
    assert "photos: found cats/, dogs/ with 6 images and no annotations, expected one of: data.yaml" in message
    assert "_annotations.coco.json" in message and "Annotations/*.xml" in message and "classes.txt" in message


def test_an_absent_or_empty_folder_is_refused(refuse, tmp_path):
    assert "absent: found no file, expected a folder with annotated images" in refuse(tmp_path / "absent")
    assert "export.zip: found a ZIP file, expected a folder; unpack it first" in refuse(tmp_path / "export.zip")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("annotations.xml", "annotations.xml looks like CVAT's own XML"),
        ("meta.json", "meta.json looks like a Supervisely project"),
        ("train/_annotations.csv", "looks like annotations in CSV"),
        ("train/a.tfrecord", "looks like TFRecord files"),
        ("train/part-00000-a51b6005e9d2.parquet", "looks like a dataset that is packed already; train with it"),
        ("images/a.json", "looks like JSON that is no COCO file"),
    ],
)
def test_a_format_without_reader_is_refused_with_advice(refuse, tmp_path, write_image, name, hint):
    write_images(write_image, tmp_path / "export" / "images", range(2))
    (tmp_path / "export" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "export" / name).write_text("{}")
    assert hint in refuse(tmp_path / "export")


def test_two_kinds_of_annotations_are_refused_unless_one_is_chosen(refuse, yolo, tmp_path):
    (yolo / "data.yaml").write_text(f"train: images\n{NAMES}")
    write_coco(yolo / "train.json", range(8), prefix="images/")
    write_voc(yolo / "Annotations", range(8))
    message = refuse(yolo)
    assert "found annotations of 3 kinds: yolo (data.yaml) and coco (train.json) and voc (Annotations/000.xml)" in message
    assert "choose by --layout yolo or --layout coco" in message
    for layout in ("yolo", "coco", "voc"):
        config = PackAutoConfig(folder=str(yolo), output=str(tmp_path / layout), layout=layout, hold_out=0)
        assert pack(config)["splits"]["train"]["images"] == 8


def test_a_chosen_kind_that_is_absent_is_refused(refuse, yolo):
    assert "found images/, labels/ with 8 images and no voc annotations" in refuse(yolo, layout="voc")


def test_label_files_without_class_names_are_refused(refuse, yolo):
    assert "found YOLO label files without class names, expected classes.txt" in refuse(yolo)


def test_two_files_of_different_class_names_are_refused(refuse, yolo):
    (yolo / "classes.txt").write_text("dog\ncat\nant")
    (yolo / "labels" / "classes.txt").write_text("ant\ncat\ndog")
    assert "found different class names in classes.txt, labels/classes.txt, expected the same names in the same order" in refuse(yolo)


def test_a_data_yaml_whose_training_images_are_absent_is_refused_with_the_content_of_the_folder(refuse, yolo):
    (yolo / "data.yaml").write_text(f"train: ../train/images\nval: images\n{NAMES}")
    message = refuse(yolo)
    assert "data.yaml: found train: ../train/images, expected images" in message and "has data.yaml, images/, labels/" in message
    (yolo / "data.yaml").write_text(f"train: [images, more/train/images]\n{NAMES}")
    assert "data.yaml: found train: more/train/images, expected images" in refuse(yolo)


def test_a_data_yaml_that_is_no_yaml_is_refused(refuse, yolo):
    (yolo / "data.yaml").write_text("train: [images\nnames: a\n")
    assert "data.yaml: found no valid YAML (while parsing a flow sequence" in refuse(yolo)


def test_a_darknet_file_whose_number_of_classes_disagrees_with_its_names_is_refused(refuse, yolo):
    (yolo / "obj.data").write_text("classes = 9\ntrain = train.txt\nnames = obj.names\n")
    (yolo / "obj.names").write_text("\n".join(CLASSES))
    message = refuse(yolo)
    assert f"obj.data: found classes = 9 and {len(CLASSES)} names in" in message and "expected as many names as classes says" in message


def test_one_of_several_dataset_files_is_taken_only_by_its_url(refuse, yolo, tmp_path):
    for name in ("a.yaml", "b.yaml"):
        (yolo / name).write_text(f"train: images\n{NAMES}")
    assert "found 2 dataset files (a.yaml, b.yaml), expected one; give the URL of one as FOLDER" in refuse(yolo)
    assert "c.yaml: found no file, expected a folder, or a data.yaml" in refuse(yolo / "c.yaml")
    write_coco(yolo / "train.json", range(8), prefix="images/")
    result = pack(PackAutoConfig(folder=str(yolo / "b.yaml"), output=str(tmp_path / "out"), hold_out=0))
    assert result["images"] == 8


def test_a_list_that_names_no_image_is_refused(refuse, yolo):
    (yolo / "data.yaml").write_text(f"train: train.txt\n{NAMES}")
    (yolo / "train.txt").write_text("pictures/1.png\npictures/2.png\n")
    assert "train.txt: found no image in 2 lines, expected the path of an image below" in refuse(yolo)


def test_two_coco_files_of_one_split_are_refused(refuse, tmp_path, write_image):
    write_images(write_image, tmp_path / "export" / "images", range(8))
    for year in (2014, 2017):
        write_coco(tmp_path / "export" / "annotations" / f"instances_train{year}.json", range(8))
    message = refuse(tmp_path / "export")
    assert (
        "found 2 COCO files for train (annotations/instances_train2014.json, annotations/instances_train2017.json), expected one" in message
    )


def test_a_coco_file_whose_images_are_elsewhere_is_refused(refuse, tmp_path, write_image):
    write_images(write_image, tmp_path / "export" / "images", range(20, 22))
    write_coco(tmp_path / "export" / "train.json", range(8))
    assert "train.json: found none of its 8 images in" in refuse(tmp_path / "export")


def test_a_coco_file_that_is_cut_is_refused(refuse, tmp_path, write_image):
    write_images(write_image, tmp_path / "export" / "train", range(4))
    (tmp_path / "export" / "train" / "_annotations.coco.json").write_text('{"images": [')
    assert "_annotations.coco.json: found no JSON" in refuse(tmp_path / "export")


def test_two_years_of_a_devkit_are_refused(refuse, tmp_path, write_image):
    for year in ("VOC2007", "VOC2012"):
        root = tmp_path / "VOCdevkit" / year
        write_images(write_image, root / "JPEGImages", range(4))
        write_voc(root / "Annotations", range(4))
        (root / "ImageSets" / "Main").mkdir(parents=True)
        (root / "ImageSets" / "Main" / "train.txt").write_text("000\n")
    assert "found VOC2007/ImageSets/Main, VOC2012/ImageSets/Main, expected one; pack each of their folders alone" in refuse(
        tmp_path / "VOCdevkit"
    )


def test_strict_refuses_a_fault_of_any_split_before_a_split_is_packed(refuse, yolo, write_image):
    (yolo / "data.yaml").write_text(f"train: images\nval: valid/images\n{NAMES}")
    write_images(write_image, yolo / "valid" / "images", range(8, 10))
    write_labels(yolo / "valid" / "labels", range(8, 10))
    (yolo / "valid" / "labels" / "008.txt").write_text("7 0.5 0.5 0.1 0.1\n1 0.5 0.5 0.1 0.1\n")
    message = refuse(yolo, strict=True)
    assert "expected none with --strict; nothing was packed" in message and "008.txt:1: unknown_class" in message


def test_a_share_of_one_or_less_than_none_is_refused():
    for share in (-0.1, 1):
        with pytest.raises(ConfigError, match=r"hold_out: found .*, expected 0 or more and less than 1"):
            PackAutoConfig(folder="a", output="b", hold_out=share)

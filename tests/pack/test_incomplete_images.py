"""An object that cannot be read is unknown: its image is no background, and a dataset of lost objects is refused."""

import json

import pytest

from packed import all_records
from yolor_ray.config import PackCocoConfig, PackVocConfig, PackYoloConfig
from yolor_ray.data.shards.dataset import open_dataset
from yolor_ray.errors import ConfigError, DataError
from yolor_ray.io import storage
from yolor_ray.pack.run import pack

GOOD = "0 0.5 0.5 0.5 0.5\n"


@pytest.fixture
def pack_yolo(yolo_set, tmp_path):
    """Pack three images with the texts of their label files; return the result and the names of the records."""

    def run(*texts: str) -> tuple[dict, list[str]]:
        sources = yolo_set(len(texts), **{f"n{number}": text for number, text in enumerate(texts)})
        result = pack(PackYoloConfig(**sources, output=str(tmp_path / "out")))
        return result, sorted(record.name for record in all_records(result["output"]))

    return run


@pytest.fixture
def pack_coco(tmp_path, write_image):
    """Pack images 0.png and 1.png with COCO annotations and image entries; return the result and the tasks by name."""

    def run(*annotations, labels: list | None = None, **options) -> tuple[dict, dict[str, tuple[str, ...]]]:
        for seed in range(2):
            write_image(tmp_path / "images" / f"{seed}.png", seed=seed)
        defaults = {"image_id": 0, "category_id": 1, "bbox": [4, 4, 20, 20]}
        entries = [{"id": index, **defaults, **entry} if isinstance(entry, dict) else entry for index, entry in enumerate(annotations, 1)]
        extra = {} if labels is None else {"labels": labels}
        images = [{"id": number, "file_name": f"{number}.png", "width": 64, "height": 48, **extra} for number in range(2)]
        categories = [{"id": 1, "name": "cat", "keypoints": ["nose"]}]
        (tmp_path / "coco.json").write_text(json.dumps({"images": images, "annotations": entries, "categories": categories}))
        sources = {"images": str(tmp_path / "images"), "annotations": str(tmp_path / "coco.json")}
        result = pack(PackCocoConfig(**sources, output=str(tmp_path / "out"), **options))
        return result, {record.name: record.tasks for record in all_records(result["output"])}

    return run


@pytest.fixture
def pack_voc(tmp_path, write_image):
    """Pack images 0.png, 1.png, … with the <object> texts of their XML files; return the result and the names of the records."""

    def run(*objects: str, classes: str = "") -> tuple[dict, list[str]]:
        (tmp_path / "xml").mkdir()
        for number, text in enumerate(objects):
            write_image(tmp_path / "images" / f"{number}.png", seed=number)
            (tmp_path / "xml" / f"{number}.xml").write_text(f"<annotation><filename>{number}.png</filename>{text}</annotation>")
        sources = {"images": str(tmp_path / "images"), "annotations": str(tmp_path / "xml"), "output": str(tmp_path / "out")}
        result = pack(PackVocConfig(**sources, classes=classes))
        return result, sorted(record.name for record in all_records(result["output"]))

    return run


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("0 0.5 x 0.2 0.2", "not_a_number"),
        ("0 0.5 0.5 0.2", "bad_line"),
        ("0 0.5 0.5 0.2 0.2 0.9", "bad_line"),
        ("cat 0.5 0.5 0.2 0.2", "bad_class_id"),
        ("7 0.5 0.5 0.2 0.2", "unknown_class"),
        ("0 32 24 16 12", "not_normalised"),
        ("0 0.5 0.5 -0.2 0.2", "not_normalised"),
    ],
)
def test_an_image_with_an_unreadable_line_is_left_out(pack_yolo, line, code):
    result, names = pack_yolo(GOOD + line, GOOD, "")
    assert (result["images"], result["boxes"], result["faults"]) == (2, 1, {code: 1, "not_fully_annotated": 1})
    assert names == ["001.png", "002.png"]


@pytest.mark.parametrize(
    ("line", "code"), [("0 0.5 0.5 0 0.2", "zero_area_box"), ("0 0.99 0.5 0.1 0.2", "box_clipped"), (GOOD.strip(), "duplicate_box")]
)
def test_an_image_stays_annotated_where_an_object_is_read_but_shows_nothing_new(pack_yolo, line, code):
    result, names = pack_yolo(GOOD + line, GOOD)
    assert (result["images"], result["faults"]) == (2, {code: 1})
    assert names == ["000.png", "001.png"]


def test_the_fault_of_an_incomplete_image_names_cause_place_and_consequence(pack_yolo, tmp_path):
    pack_yolo(f"{GOOD}0 0.5 x 0.2 0.2\n0 1\n0 2\n", GOOD)
    faults = [json.loads(line) for line in (tmp_path / "out" / "faults.jsonl").read_text().splitlines()]
    (fault,) = [fault for fault in faults if fault["code"] == "not_fully_annotated"]
    assert fault["file"].endswith("000.txt")
    assert "objects that cannot be read (bad_line 2, not_a_number 1), expected every object; image left out" in fault["message"]
    assert [fault["image"] for fault in faults if fault["code"] == "bad_line"] == ["000.png"] * 2


def test_comments_and_odd_spaces_are_no_lost_objects(pack_yolo):
    result, _ = pack_yolo(
        "# class cx cy w h\n0\u00a00.5\t0.5 0.5 0.5 \n\n  #0 0.5 0.5 0.1 0.1\n", "1e0 0.5 0.5 0.25 0.25\r\n0.0 .5 .5 .25 .25\r"
    )
    assert (result["images"], result["boxes"], result["faults"]) == (2, 3, {})


@pytest.mark.parametrize(
    "change", [{"bbox": None}, {"bbox": [1, 2, 3]}, {"bbox": [1, "x", 2, 3]}, {"category_id": 9}], ids=["none", "short", "text", "category"]
)
def test_a_coco_image_with_an_unreadable_object_keeps_only_tasks_of_the_whole_image(pack_coco, change):
    result, tasks = pack_coco({}, change, {"image_id": 1}, labels=["wet"])
    assert result["faults"]["not_fully_annotated"] == 1
    assert tasks == {"0.png": ("classify",), "1.png": ("classify", "detect")}


def test_a_coco_image_with_an_unreadable_object_is_left_out_without_another_task(pack_coco):
    result, tasks = pack_coco({"bbox": [1, 2, "x", 4]}, {"image_id": 1})
    assert result["faults"] == {"not_a_number": 1, "not_fully_annotated": 1}
    assert tasks == {"1.png": ("detect",)}


def test_image_labels_of_present_objects_need_all_objects(pack_coco):
    _, tasks = pack_coco({}, {"category_id": 9}, {"image_id": 1}, image_labels="present")
    assert tasks == {"1.png": ("classify", "detect")}


def test_unreadable_keypoints_exclude_an_image_from_pose_if_no_object_has_others(pack_coco):
    result, tasks = pack_coco({"keypoints": [5, 5, 2]}, {"bbox": [1, 1, 5, 5], "keypoints": [1]}, {"image_id": 1, "keypoints": [5]})
    assert result["faults"] == {"bad_keypoints": 2}
    assert tasks == {"0.png": ("detect", "pose"), "1.png": ("detect",)}


def voc_object(name: str = "cat", xmin: object = 5) -> str:
    box = f"<bndbox><xmin>{xmin}</xmin><ymin>5</ymin><xmax>24</xmax><ymax>24</ymax></bndbox>"
    return f"<object><name>{name}</name>{box}</object>"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (voc_object(xmin="x"), "not_a_number"),
        (voc_object(name=""), "missing_class"),
        ("<object><name>cat</name></object>", "missing_box"),
    ],
)
def test_a_voc_image_with_an_unreadable_object_is_left_out(pack_voc, text, code):
    result, names = pack_voc(voc_object() + text, voc_object())
    assert result["faults"] == {code: 1, "not_fully_annotated": 1}
    assert names == ["1.png"]


def test_objects_of_other_classes_than_the_flag_names_are_left_out_on_purpose(pack_voc):
    result, names = pack_voc(voc_object() + voc_object("dog"), voc_object("dog"), classes="cat")
    assert (result["boxes"], result["faults"]) == (1, {"unknown_class": 2})
    assert names == ["0.png", "1.png"]


def test_a_class_that_is_named_twice_is_refused(pack_voc):
    with pytest.raises(ConfigError, match="classes: found 'cat, cat', expected each name once"):
        pack_voc(voc_object(), classes="cat, cat")


def test_a_dataset_that_lost_every_object_is_refused_with_the_commonest_fault(pack_yolo, tmp_path):
    message = r"found no usable image, expected at least one; 5 faults: bad_line 1, not_a_number 2, not_fully_annotated 2; "
    with pytest.raises(DataError, match=message + r"for example .*000\.txt:1: not_a_number: found x"):
        pack_yolo("0 0.5 x 0.2 0.2\n0 1", "0 0.5 0.5 0.5 y")
    assert storage.list_names(str(tmp_path / "out")) == []


@pytest.mark.parametrize(
    ("lines", "code"),
    [("0 0.5 0.5 0 0.2", "zero_area_box 1"), ("0 0.5 0.5 0.2", "bad_line 1"), ("0 0.99 0.5 0 0", "zero_area_box 1")],
)
def test_backgrounds_beside_lost_objects_are_no_dataset(pack_yolo, tmp_path, lines, code):
    with pytest.raises(DataError, match=rf"found \d images and no usable object, .*faults: .*{code}"):
        pack_yolo(lines, "", "")
    assert storage.list_names(str(tmp_path / "out")) == []


def test_text_files_of_other_names_than_the_images_are_refused(yolo_set, tmp_path):
    sources = yolo_set(3)
    for file in (tmp_path / "labels").iterdir():
        file.rename(file.with_name(f"frame_{file.name}"))
    with pytest.raises(DataError, match=r"6 faults: missing_annotation 3, missing_image 3; for example .*frame_000\.txt"):
        pack(PackYoloConfig(**sources, output=str(tmp_path / "out")))
    assert storage.list_names(str(tmp_path / "out")) == []


def test_a_folder_with_a_list_of_classes_alone_is_refused(yolo_set, tmp_path):
    sources = yolo_set(1)
    (tmp_path / "labels" / "000.txt").rename(tmp_path / "labels" / "classes.txt")
    with pytest.raises(DataError, match="labels: found no text file with annotations, expected one per image"):
        pack(PackYoloConfig(**sources, output=str(tmp_path / "out")))


def test_an_image_called_like_the_list_of_classes_has_its_own_annotations(yolo_set, tmp_path, write_image):
    sources = yolo_set(1)
    write_image(tmp_path / "images" / "classes.png", seed=5)
    (tmp_path / "labels" / "classes.txt").write_text("cat\ndog\n")
    result = pack(PackYoloConfig(**sources, output=str(tmp_path / "out")))
    assert (result["images"], result["faults"]) == (1, {"bad_line": 2, "not_fully_annotated": 1})


def test_an_image_with_two_text_files_is_no_background(yolo_set, tmp_path):
    sources = yolo_set(2)
    (tmp_path / "labels" / "001.txt").rename(tmp_path / "labels" / "001.TXT")
    (tmp_path / "labels" / "001.txt").write_text("")
    result = pack(PackYoloConfig(**sources, output=str(tmp_path / "out")))
    assert (result["images"], result["boxes"], result["faults"]) == (1, 2, {"ambiguous_image": 1})


def test_backgrounds_alone_are_a_dataset_with_a_warning(pack_yolo, caplog):
    result, names = pack_yolo("", "\n")
    assert (result["images"], result["boxes"], result["faults"], len(names)) == (2, 0, {}, 2)
    assert "event=no_boxes images=2" in caplog.text


def test_a_coco_file_whose_annotations_belong_to_other_images_is_refused(pack_coco, tmp_path):
    with pytest.raises(DataError, match=r"found 2 images and no usable object, .*unknown_image 2; for example"):
        pack_coco({"image_id": 8}, {"image_id": 9})
    assert storage.list_names(str(tmp_path / "out")) == []


def test_a_coco_box_of_negative_width_is_unknown_and_its_image_no_background(pack_coco):
    result, tasks = pack_coco({"image_id": 0}, {"image_id": 1, "bbox": [24, 24, -20, -20]})
    assert (result["faults"], list(tasks)) == ({"missing_box": 1, "not_fully_annotated": 1}, ["0.png"])


@pytest.mark.parametrize("entry", [{"image_id": None}, {"image_id": "1.png"}, None, "dog"])
def test_an_image_without_objects_is_unknown_where_an_object_names_no_image(pack_coco, entry):
    result, tasks = pack_coco({"image_id": 0}, entry)
    assert list(tasks) == ["0.png"]
    assert result["faults"]["not_fully_annotated"] == 1


def test_objects_of_images_that_the_file_lacks_make_no_other_image_unknown(pack_coco):
    result, tasks = pack_coco({"image_id": 0}, {"image_id": 17})
    assert (result["faults"], list(tasks)) == ({"unknown_image": 1}, ["0.png", "1.png"])


def test_an_image_without_objects_keeps_its_labels_where_an_object_names_no_image(pack_coco):
    _, tasks = pack_coco({"image_id": 0}, {"image_id": None}, labels=["wet"])
    assert tasks == {"0.png": ("classify", "detect"), "1.png": ("classify",)}


def test_a_dataset_of_image_labels_needs_no_box(pack_coco, tmp_path):
    result, tasks = pack_coco({"image_id": 0, "bbox": None}, {"image_id": 1, "bbox": None}, labels=["wet"])
    assert (result["images"], set(tasks.values())) == (2, {("classify",)})
    assert open_dataset(str(tmp_path / "out")).tasks == ("classify",)

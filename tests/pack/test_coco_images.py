"""Images of COCO files: their ids, the files that entries name, and the sizes that entries claim."""

import json

import pytest

from yolor_ray.data.images.header import ImageHeader
from yolor_ray.pack.annotations.coco import read_coco
from yolor_ray.pack.annotations.image_folder import ImageFolder
from yolor_ray.pack.annotations.normalize import normalize_objects

WIDTH, HEIGHT = 64, 48
BOX = (5.0, 5.0, 25.0, 25.0)


def annotation(image_id: object = 1, **changes) -> dict:
    plain = {"id": 1, "image_id": image_id, "category_id": 1, "bbox": [5, 5, 20, 20]} | changes
    return {name: value for name, value in plain.items() if value is not ...}


def image(number: object = 1, name: str = "a.png", **changes) -> dict:
    return {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT, **changes}


@pytest.fixture
def read(tmp_path, write_image):
    """Write images and a COCO file; return the annotations that are read from the file."""

    def run(images: list, annotations: list, files: tuple[str, ...] = ("a.png", "b.png"), categories: list | None = None):
        for seed, name in enumerate(files):
            write_image(tmp_path / "images" / name, WIDTH, HEIGHT, seed)
        content = {"images": images, "annotations": annotations, "categories": categories or [{"id": 1, "name": "cat"}]}
        (tmp_path / "coco.json").write_text(json.dumps(content))
        return read_coco(ImageFolder(str(tmp_path / "images")), str(tmp_path / "coco.json"))

    return run


def boxes(annotations) -> dict[str, list[tuple]]:
    return {item.name: [obj.box for obj in item.objects] for item in annotations.images}


def faults(annotations) -> list[tuple[str, str]]:
    return sorted((fault.code, fault.pointer) for fault in annotations.faults)


@pytest.mark.parametrize(
    ("image_id", "annotated_id"),
    [(0, "0"), ("0", 0), (0, 0.0), (0.0, "0"), (7, "7.0"), (139, "000000000139"), ("0007", "7"), ("img_1", " img_1 "), (2**60, str(2**60))],
)
def test_image_ids_are_equal_by_value(read, image_id, annotated_id):
    annotations = read([image(image_id), image(99, "b.png")], [annotation(annotated_id)])
    assert boxes(annotations) == {"a.png": [BOX], "b.png": []}
    assert annotations.faults == ()


@pytest.mark.parametrize("image_id", [None, True, [1], {}, "", "1 a", 1.5, "one", float("nan"), ...])
def test_another_value_is_the_id_of_no_image(read, image_id):
    annotations = read([image(1)], [annotation(image_id)])
    assert faults(annotations) == [("unknown_image", "/annotations/0")]


@pytest.mark.parametrize(("declared", "used"), [("3", 3), (3, "3"), (3, 3.0), (3.0, "03"), ("cat", "cat"), ("a1", " a1")])
def test_category_ids_are_equal_by_value(read, declared, used):
    categories = [{"id": 20, "name": "dog"}, {"id": declared, "name": "cat"}]
    annotations = read([image()], [annotation(category_id=used)], categories=categories)
    assert annotations.classes[annotations.images[0].objects[0].label] == "cat"
    assert annotations.faults == ()


def test_labels_follow_the_value_of_ids_that_are_text(read):
    categories = [{"id": "10", "name": "c"}, {"id": "9", "name": "b"}, {"id": 1.0, "name": "a"}, {"id": "x", "name": "d"}]
    assert read([image()], [], categories=categories).classes == ("a", "b", "c", "d")


@pytest.mark.parametrize("key", [0, None, "a", ..., [3]])
def test_the_id_of_an_annotation_is_no_key(read, key):
    annotations = read(
        [image(1), image(2, "b.png")], [annotation(number, id=key, bbox=[5, y, 20, 20]) for number in (1, 2) for y in (5, 9)]
    )
    assert boxes(annotations) == {name: [BOX, (5, 9, 25, 29)] for name in ("a.png", "b.png")}
    assert annotations.faults == ()


@pytest.mark.parametrize("second", [1, 1.0, "1", "01"])
@pytest.mark.parametrize("other", ["b.png", "gone.png"])
def test_an_id_of_two_files_leaves_both_out(read, second, other):
    annotations = read([image(1), image(second, other), image(2, "c.png")], [annotation(1), annotation(2)], ("a.png", "b.png", "c.png"))
    assert boxes(annotations) == {"c.png": [BOX]}
    second_code = "duplicate_id" if other == "b.png" else "missing_image"
    assert faults(annotations) == sorted([("duplicate_id", "/images/0"), (second_code, "/images/1")])


def test_an_image_with_an_id_of_its_own_and_a_shared_one_is_left_out(read):
    annotations = read([image(1), image(1, "b.png"), image(2, "a.png")], [annotation(2)])
    assert boxes(annotations) == {}
    assert faults(annotations) == [("duplicate_id", f"/images/{index}") for index in range(3)]


@pytest.mark.parametrize("second", [1, "1", 2])
def test_the_objects_of_several_entries_of_one_file_are_joined(read, second):
    annotations = read([image(1), image(second, "./a.png")], [annotation(1), annotation(second, bbox=[1, 1, 9, 9])])
    assert boxes(annotations) == {"a.png": [BOX, (1, 1, 10, 10)]}
    assert faults(annotations) == [("duplicate_id", "/images/1")]
    assert "the first is at" in annotations.faults[0].message


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("sub\\a.png", "sub/a.png"),
        ("./a.png", "a.png"),
        (".\\sub\\a.png", "sub/a.png"),
        ("/data/imgs/a.png", "a.png"),
        ("C:\\data\\imgs\\a.png", "a.png"),
        ("../imgs/a.png", "a.png"),
        ("images/a.png", "a.png"),
        ("images/sub/a.png", "sub/a.png"),
        ("photos/a.png", "a.png"),
        ("a.png", "deep/sub/a.png"),
        ("sub/a.png", "deep/sub/a.png"),
        ("https://host.example/x/a.png", "a.png"),
        ("https://host.example/x/a.png?size=640&sig=b/c.png#top", "a.png"),
        ("https://host.example/o/sub%2Fa%20b.png?alt=media", "sub/a b.png"),
        ("s3://bucket/imgs/a.png", "sub/a.png"),
        ("file:///data/a.png", "a.png"),
        ("a.png?v=2", "a.png"),
        ("a%20b.png", "a b.png"),
        ("a b.png", "a%20b.png"),
        ("caf\u00e9%20.PNG", "cafe\u0301 .png"),
        ("%E5%9B%BE.png", "\u56fe.png"),
        (" a.png ", "a.png"),
        ("100%.png", "100%.png"),
        ("sub//a.png", "sub/a.png"),
        ("x/../a.png", "a.png"),
    ],
)
def test_a_file_name_is_found_as_tools_write_it(read, name, file):
    annotations = read([image(1, name)], [annotation()], (file, "other.png"))
    assert boxes(annotations) == {file: [BOX]}
    assert annotations.faults == ()


@pytest.mark.parametrize(
    ("name", "files", "found"),
    [
        ("a.png", ("a.png", "sub/a.png"), "a.png"),
        ("./a.png", ("a.png", "sub/a.png"), "a.png"),
        ("images/a.png", ("a.png", "sub/a.png"), "a.png"),
        ("/data/sub/a.png", ("a.png", "sub/a.png", "other/a.png"), "sub/a.png"),
        ("a.PNG", ("a.png", "A.png"), None),
        ("sub/a.png", ("x/sub/a.png", "y/a.png"), "x/sub/a.png"),
        ("images/A.png", ("a.png", "A.png"), "A.png"),
        ("a%20b.png", ("a b.png", "a%20b.png"), "a%20b.png"),
    ],
)
def test_the_longest_agreement_of_folders_decides(read, name, files, found):
    assert boxes(read([image(1, name)], [annotation()], files)) == ({found: [BOX]} if found else {})


@pytest.mark.parametrize("name", ["a.png", "/data/imgs/a.png", "https://host.example/a.png", "z/a.png", "A.PNG"])
def test_a_name_of_two_files_is_a_fault_with_both(read, name):
    annotations = read([image(1, name), image(2, "b.png")], [annotation()], ("x/a.png", "y/a.png", "b.png"))
    assert boxes(annotations) == {"b.png": []}
    (fault,) = annotations.faults
    assert fault.code in ("ambiguous_image", "missing_image") and fault.pointer == "/images/0"
    assert "x/a.png" in fault.message and "y/a.png" in fault.message and repr(name) in fault.message


def test_a_name_in_another_folder_is_another_image(read):
    annotations = read([image(1, "cam1/0.png"), image(2, "cam2/0.png")], [annotation(1), annotation(2)], ("cam1/0.png",))
    assert boxes(annotations) == {"cam1/0.png": [BOX]}
    assert faults(annotations) == [("missing_image", "/images/1")]


def test_a_file_that_two_different_names_may_mean_goes_to_the_one_with_its_whole_path(read):
    images = [image(1, "/x/cam1/0.png"), image(2, "/x/cam2/0.png"), image(3, "cam3/0.png")]
    entries = [annotation(number, bbox=[number, 5, 20, 20]) for number in (1, 2, 3)]
    annotations = read(images, entries, ("cam3/0.png",))
    assert boxes(annotations) == {"cam3/0.png": [(3, 5, 23, 25)]}
    assert faults(annotations) == [("ambiguous_image", "/images/0"), ("ambiguous_image", "/images/1")]
    assert boxes(read(images[:2], entries[:2], ("cam3/0.png",))) == {}


@pytest.mark.parametrize(
    ("width", "height"), [(640, 48), (640.0, 48.0), ("640", "48"), (6.4e2, 48), ("6.4e2", " 48 "), (64, 480), (640, 480)]
)
def test_a_claimed_size_is_read_as_a_number(read, width, height):
    annotations = read([image(width=width, height=height)], [annotation()])
    objects, found = normalize_objects(annotations.images[0], ImageHeader("PNG", WIDTH, HEIGHT, 1))
    assert (objects, [fault.code for fault in found]) == (None, ["size_mismatch"])


@pytest.mark.parametrize(("width", "height"), [(64, 48), (64.0, "48"), ("64.0", 48.0000001), (63.99999, 48)])
def test_the_true_size_is_no_fault_however_it_is_written(read, width, height):
    annotations = read([image(width=width, height=height)], [annotation()])
    assert annotations.images[0].declared_px == (64, 48)


@pytest.mark.parametrize("side", [None, "wide", "", float("nan"), float("inf"), -640, 0, "0", True, [640], 1e400, 10**400])
def test_an_unreadable_size_claims_nothing(read, side):
    for sides in ({"width": side, "height": 48}, {"width": 64, "height": side}, {"width": side, "height": side}):
        annotations = read([image(**sides)], [annotation()])
        assert annotations.images[0].declared_px is None
        objects, found = normalize_objects(annotations.images[0], ImageHeader("PNG", WIDTH, HEIGHT, 1))
        assert (objects.boxes_xyxy.tolist(), found) == ([list(BOX)], [])


SUPER = {"id": 0, "name": "cells", "supercategory": "none"}
CELLS = [{"id": 1, "name": "RBC", "supercategory": "cells"}, {"id": 2, "name": "WBC", "supercategory": "cells"}]


def test_an_unused_supercategory_is_left_out_with_a_word(read, caplog):
    annotations = read([image()], [annotation(category_id=2)], categories=[SUPER, *CELLS])
    assert annotations.classes == ("RBC", "WBC")
    assert annotations.images[0].objects[0].label == 1
    assert "event=supercategory_left_out name='cells' id=0" in caplog.text


def test_other_categories_without_annotations_stay(read, caplog):
    used = [annotation(category_id="0"), annotation(category_id=1)]
    assert read([image()], used, categories=[SUPER, *CELLS]).classes == ("cells", "RBC", "WBC")
    own = [{"id": 1, "name": "person", "supercategory": "person"}, {"id": 2, "name": "car", "supercategory": ["vehicle"]}]
    assert read([image()], [], categories=own).classes == ("person", "car")
    circle = [{"id": 1, "name": "a", "supercategory": "b"}, {"id": 2, "name": "b", "supercategory": "a"}]
    assert read([image()], [], categories=circle).classes == ("a", "b")
    assert "supercategory_left_out" not in caplog.text

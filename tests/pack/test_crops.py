"""Identities, classes and cameras are read from file names."""

import pytest

from yolor_ray.config import PackCropsConfig
from yolor_ray.errors import ConfigError
from yolor_ray.pack.annotations.crops import read_crops
from yolor_ray.pack.annotations.image_folder import ImageFolder

NESTED = r"(?P<identity>(?P<class>[a-z]+)_\d+)_cam(?P<camera>\d+)"
NAMES = ("bus_2_cam7.jpg", "bus_10_cam3.jpg", "car_2_cam3.jpg", "car_2_cam7.jpg", "readme.png")


@pytest.fixture
def folder(tmp_path):
    """Make empty image files: only their names are read."""
    for name in (*NAMES, "night/bus_2_cam3.jpg"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).touch()
    return ImageFolder(str(tmp_path / "images"))


def contents(annotations) -> dict[str, tuple]:
    return {
        image.name: (annotations.classes[image.objects[0].label], image.objects[0].identity, image.camera) for image in annotations.images
    }


def test_class_individual_and_camera_are_read_from_the_name_and_numbered_alphabetically(folder):
    annotations = read_crops(folder, NESTED)
    assert annotations.classes == ("bus", "car")
    assert contents(annotations) == {
        "bus_10_cam3.jpg": ("bus", 0, 0),
        "bus_2_cam7.jpg": ("bus", 1, 1),
        "night/bus_2_cam3.jpg": ("bus", 1, 0),
        "car_2_cam3.jpg": ("car", 2, 0),
        "car_2_cam7.jpg": ("car", 2, 1),
    }
    assert {image.tasks for image in annotations.images} == {("detect", "embed")}
    assert all(len(image.objects) == 1 and image.objects[0].box == (0, 0, 1, 1) and image.fractions for image in annotations.images)


def test_a_name_that_does_not_match_is_reported_and_left_out(folder):
    (fault,) = read_crops(folder, NESTED).faults
    assert (fault.code, fault.file) == ("bad_name", f"{folder.url}/readme.png")
    assert "does not match '(?P<identity>" in fault.message


def test_without_the_groups_there_is_one_class_and_no_known_camera(folder):
    annotations = read_crops(folder, r"_(?P<identity>\d+)_")
    assert annotations.classes == ("object",)
    assert contents(annotations)["car_2_cam3.jpg"] == contents(annotations)["bus_2_cam7.jpg"] == ("object", 1, -1)


def test_a_group_may_match_a_folder_and_may_be_absent(folder):
    annotations = read_crops(folder, r"^((?P<camera>\w+)/)?(?P<identity>bus_\d+)")
    assert contents(annotations) == {
        "bus_10_cam3.jpg": ("object", 0, -1),
        "bus_2_cam7.jpg": ("object", 1, -1),
        "night/bus_2_cam3.jpg": ("object", 1, 0),
    }


def test_splits_agree_on_all_numbers_and_list_files_with_or_without_suffix(folder, tmp_path):
    split = tmp_path / "split.txt"
    split.write_text("car_2_cam7.jpg\n\nnight/bus_2_cam3\ncar_2_cam7\ngone.jpg\nreadme.png\n")
    annotations = read_crops(folder, NESTED, str(split))
    everything = read_crops(folder, NESTED)
    assert annotations.classes == everything.classes
    assert contents(annotations) == {name: contents(everything)[name] for name in ("car_2_cam7.jpg", "night/bus_2_cam3.jpg")}
    assert [(fault.code, fault.line) for fault in annotations.faults] == [("duplicate_id", 4), ("missing_image", 5), ("bad_name", None)]


def test_given_classes_order_the_labels_and_other_classes_are_left_out(folder):
    annotations = read_crops(folder, NESTED, classes=["truck", "car"])
    assert annotations.classes == ("truck", "car")
    assert set(contents(annotations)) == {"car_2_cam3.jpg", "car_2_cam7.jpg"}
    assert [fault.code for fault in annotations.faults].count("unknown_class") == 3
    assert "found class 'bus', expected one of truck, car" in next(f.message for f in annotations.faults if f.code == "unknown_class")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(?P<identity>", "expected a regular expression: missing"),
        (r"(\w+)_", "found named groups none, expected"),
        ("(?P<camera>.)", "found named groups camera, expected"),
        ("(?P<identity>.)(?P<cam>.)", "found named groups identity, cam, expected"),
    ],
)
def test_an_unusable_pattern_is_refused_before_anything_is_read(pattern, message):
    with pytest.raises(ConfigError, match=message):
        PackCropsConfig(output="o", images="i", pattern=pattern)

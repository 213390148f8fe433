"""Read who is shown from file names."""

import pytest

from yolor_ray.config import PackCropsConfig
from yolor_ray.errors import ConfigError
from yolor_ray.pack.annotations.crops import read_crops
from yolor_ray.pack.annotations.image_folder import ImageFolder

NESTED = r"(?P<identity>(?P<class>[a-z]+)_\d+)_cam(?P<camera>\d+)"
NAMES = ("bus_2_cam7.jpg", "bus_10_cam3.jpg", "car_2_cam3.jpg", "car_2_cam7.jpg", "readme.png")


@pytest.fixture
def folder(tmp_path):
    """Names are read, images are not: empty files do."""
    for name in (*NAMES, "night/bus_2_cam3.jpg"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).touch()
    return ImageFolder(str(tmp_path / "images"))


def told(found) -> dict[str, tuple]:
    return {image.name: (found.classes[image.objects[0].label], image.objects[0].identity, image.camera) for image in found.images}


def test_a_name_tells_class_individual_and_camera_each_numbered_in_the_order_of_its_words(folder):
    found = read_crops(folder, NESTED)
    assert found.classes == ("bus", "car")
    assert told(found) == {
        "bus_10_cam3.jpg": ("bus", 0, 0),
        "bus_2_cam7.jpg": ("bus", 1, 1),
        "night/bus_2_cam3.jpg": ("bus", 1, 0),
        "car_2_cam3.jpg": ("car", 2, 0),
        "car_2_cam7.jpg": ("car", 2, 1),
    }
    assert {image.tasks for image in found.images} == {("detect", "embed")}
    assert all(len(image.objects) == 1 and image.objects[0].box == (0, 0, 1, 1) and image.fractions for image in found.images)


def test_a_name_that_does_not_match_is_reported_and_left_out(folder):
    (fault,) = read_crops(folder, NESTED).faults
    assert (fault.code, fault.file) == ("bad_name", f"{folder.url}/readme.png")
    assert "does not match '(?P<identity>" in fault.message


def test_without_the_groups_there_is_one_class_and_no_known_camera(folder):
    found = read_crops(folder, r"_(?P<identity>\d+)_")
    assert found.classes == ("object",)
    assert told(found)["car_2_cam3.jpg"] == told(found)["bus_2_cam7.jpg"] == ("object", 1, -1)


def test_folders_may_tell_and_a_group_may_be_absent_from_a_name(folder):
    found = read_crops(folder, r"^((?P<camera>\w+)/)?(?P<identity>bus_\d+)")
    assert told(found) == {
        "bus_10_cam3.jpg": ("object", 0, -1),
        "bus_2_cam7.jpg": ("object", 1, -1),
        "night/bus_2_cam3.jpg": ("object", 1, 0),
    }


def test_splits_agree_on_all_numbers_and_name_files_with_or_without_suffix(folder, tmp_path):
    split = tmp_path / "split.txt"
    split.write_text("car_2_cam7.jpg\n\nnight/bus_2_cam3\ncar_2_cam7\ngone.jpg\nreadme.png\n")
    found = read_crops(folder, NESTED, str(split))
    whole = read_crops(folder, NESTED)
    assert found.classes == whole.classes
    assert told(found) == {name: told(whole)[name] for name in ("car_2_cam7.jpg", "night/bus_2_cam3.jpg")}
    assert [(fault.code, fault.line) for fault in found.faults] == [("duplicate_id", 4), ("missing_image", 5), ("bad_name", None)]


def test_given_classes_order_the_labels_and_others_are_left_out(folder):
    found = read_crops(folder, NESTED, classes=["truck", "car"])
    assert found.classes == ("truck", "car")
    assert set(told(found)) == {"car_2_cam3.jpg", "car_2_cam7.jpg"}
    assert [fault.code for fault in found.faults].count("unknown_class") == 3
    assert "found class 'bus', expected one of truck, car" in next(f.message for f in found.faults if f.code == "unknown_class")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(?P<identity>", "expected a regular expression: missing"),
        (r"(\w+)_", "found named groups none, expected"),
        ("(?P<camera>.)", "found named groups camera, expected"),
        ("(?P<identity>.)(?P<cam>.)", "found named groups identity, cam, expected"),
    ],
)
def test_a_pattern_that_cannot_tell_is_refused_before_anything_is_read(pattern, message):
    with pytest.raises(ConfigError, match=message):
        PackCropsConfig(output="o", images="i", pattern=pattern)

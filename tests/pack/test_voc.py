from pathlib import Path

import numpy as np
import pytest

from yolor_ray.data.images.header import ImageHeader
from yolor_ray.errors import DataError
from yolor_ray.pack.annotations.image_folder import ImageFolder
from yolor_ray.pack.annotations.normalize import fit
from yolor_ray.pack.annotations.safe_xml import XmlError, parse_xml
from yolor_ray.pack.annotations.voc import read_voc


def voc_object(name: str = "cat", xmin: object = 11, ymin: object = 6, xmax: object = 30, ymax: object = 40) -> str:
    corners = f"<xmin>{xmin}</xmin>\n<ymin>{ymin}</ymin>\n<xmax>{xmax}</xmax>\n<ymax>{ymax}</ymax>"
    return f"<object>\n<name>{name}</name>\n<difficult>1</difficult>\n<bndbox>{corners}</bndbox>\n</object>\n"


def voc_file(*objects: str, filename: str = "a.png", size: tuple[int, int] = (64, 48)) -> str:
    head = f"<annotation>\n<filename>{filename}</filename>\n<size><width>{size[0]}</width><height>{size[1]}</height></size>\n"
    return head + "".join(objects) + "</annotation>\n"


@pytest.fixture
def pack_files(tmp_path, write_image):
    """Write images a.png, b.png, … and XML files; return what is read from them."""

    def read(files: dict[str, str | bytes], images: tuple[str, ...] = ("a.png",), **options):
        for seed, name in enumerate(images):
            write_image(tmp_path / "images" / name, seed=seed)
        (tmp_path / "xml").mkdir(exist_ok=True)
        for name, text in files.items():
            (tmp_path / "xml" / name).write_bytes(text.encode() if isinstance(text, str) else text)
        return read_voc(ImageFolder(str(tmp_path / "images")), str(tmp_path / "xml"), **options)

    return read


def codes(found) -> list[str]:
    return [fault.code for fault in found.faults]


def test_a_box_is_read_one_based_and_inclusive_as_the_devkit_defines(pack_files):
    found = pack_files({"a.xml": voc_file(voc_object(xmin=1, ymin=1, xmax=64, ymax=48), voc_object(xmin=11, ymin=6, xmax=30, ymax=40))})
    assert [drawn.box for drawn in found.images[0].objects] == [(0, 0, 64, 48), (10, 5, 30, 40)]
    assert found.faults == ()


def test_a_box_that_counts_from_zero_starts_at_the_edge_and_one_outside_stays_outside(pack_files):
    found = pack_files({"a.xml": voc_file(voc_object(xmin=0, ymin=0.5), voc_object(xmin=-20))})
    assert [drawn.box[:2] for drawn in found.images[0].objects] == [(0, 0), (-20, 5)]


def test_a_difficult_object_is_an_object(pack_files):
    assert len(pack_files({"a.xml": voc_file(voc_object())}).images[0].objects) == 1


@pytest.mark.parametrize(("xmax", "ymax"), [(11, 40), (30, 6), (5, 40), (30, 2)])
def test_a_zero_area_box_is_reported_with_file_and_line(pack_files, xmax, ymax):
    found = pack_files({"a.xml": voc_file(voc_object(), voc_object(xmax=xmax, ymax=ymax))})
    (fault,) = found.faults
    assert fault.code == "zero_area_box"
    assert fault.place.endswith("a.xml:12")
    assert f"xmax {xmax}, ymax {ymax}" in fault.message and "'a.png'" in fault.message
    assert len(found.images[0].objects) == 1


@pytest.mark.parametrize("value", ["", "abc", "nan", "inf", "1e400", "1,5"])
def test_a_coordinate_that_is_no_number_is_reported(pack_files, value):
    found = pack_files({"a.xml": voc_file(voc_object(xmin=value))})
    assert codes(found) == ["not_a_number"]
    assert f"xmin {value!r}" in found.faults[0].message


def test_an_object_without_box_is_reported(pack_files):
    assert codes(pack_files({"a.xml": voc_file("<object><name>cat</name></object>")})) == ["missing_box"]


def test_classes_come_sorted_from_all_files_also_those_outside_the_split(pack_files, tmp_path):
    (tmp_path / "split.txt").write_text("a\n")
    files = {"a.xml": voc_file(voc_object("dog")), "b.xml": voc_file(voc_object("ant"), filename="b.png")}
    found = pack_files(files, ("a.png", "b.png"), split_file=str(tmp_path / "split.txt"))
    assert found.classes == ("ant", "dog")
    assert [image.name for image in found.images] == ["a.png"]
    assert found.images[0].objects[0].label == 1


def test_given_classes_make_other_names_unknown(pack_files):
    found = pack_files({"a.xml": voc_file(voc_object("dog"), voc_object("cat"))}, classes=["cat"])
    assert found.classes == ("cat",)
    assert codes(found) == ["unknown_class"]
    assert "found class 'dog', expected one of cat" in found.faults[0].message


def test_an_image_is_found_by_filename_else_by_stem(pack_files):
    files = {"a.xml": voc_file(filename="x/y\\b.png"), "c.xml": voc_file(voc_object(), filename="gone.png")}
    found = pack_files(files, ("b.png", "c.png"))
    assert [image.name for image in found.images] == ["b.png", "c.png"]
    assert found.faults == ()


def test_an_image_that_is_not_there_is_reported_with_the_line_of_its_name(pack_files):
    found = pack_files({"a.xml": voc_file(voc_object()), "z.xml": voc_file(filename="gone.png")})
    (fault,) = found.faults
    assert (fault.code, fault.line) == ("missing_image", 2)
    assert "'gone.png'" in fault.message


def test_two_files_about_one_image_are_a_duplicate(pack_files):
    found = pack_files({"a.xml": voc_file(voc_object()), "b.xml": voc_file(voc_object())})
    assert codes(found) == ["duplicate_id"]
    assert "a.xml" in found.faults[0].message and found.faults[0].file.endswith("b.xml")


def test_an_image_without_xml_is_not_taken_for_a_background(pack_files):
    found = pack_files({"a.xml": voc_file(voc_object())}, ("a.png", "b.png"))
    assert codes(found) == ["missing_annotation"]
    assert found.faults[0].file.endswith("b.png")


def test_a_split_file_may_hold_stems_names_paths_and_class_flags(pack_files, tmp_path):
    files = {f"{name}.xml": voc_file(voc_object(), filename=f"{name}.png") for name in ("a", "b b", "c", "d")}
    (tmp_path / "split.txt").write_bytes("\ufeffa\r\nJPEGImages/b b.png\r\n\r\nc  -1\r\nmissing\r\na.png\r\n".encode())
    found = pack_files(files, ("a.png", "b b.png", "c.png", "d.png"), split_file=str(tmp_path / "split.txt"))
    assert [image.name for image in found.images] == ["a.png", "b b.png", "c.png"]
    assert [(fault.code, fault.line) for fault in found.faults] == [("missing_annotation", 5), ("duplicate_id", 6)]


def test_names_pair_up_across_case_and_unicode_composition(pack_files):
    found = pack_files({"a.xml": voc_file(voc_object(), filename="caf\u00e9.png")}, ("CAFE\u0301.PNG",))
    assert [image.name for image in found.images] == ["CAFE\u0301.PNG"]


def test_a_hidden_file_is_neither_annotation_nor_image(pack_files):
    found = pack_files({"a.xml": voc_file(voc_object()), "._a.xml": b"\0\1"}, ("a.png", "._a.png"))
    assert found.faults == ()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("<annotation>\n<object></annotation>", 2),
        ("", 1),
        ("<other/>", 1),
        ('<?xml version="1.0"?>\n<!DOCTYPE a [\n<!ENTITY a "aaaa">\n<!ENTITY b "&a;&a;">]>\n<annotation>&b;</annotation>', 3),
        ('<!DOCTYPE a [\n<!ENTITY x SYSTEM "file:///etc/passwd">]>\n<annotation><filename>&x;</filename></annotation>', 2),
        ('<?xml version="1.0" encoding="no-such"?>\n<annotation/>', 1),
    ],
    ids=["malformed", "empty", "another root", "entity bomb", "outside entity", "encoding"],
)
def test_bad_xml_is_refused_with_its_line_and_the_rest_goes_on(pack_files, text, line):
    found = pack_files({"a.xml": voc_file(voc_object()), "b.xml": text}, ("a.png", "b.png"))
    assert [(fault.code, fault.line) for fault in found.faults] == [("bad_xml", line)]
    assert [image.name for image in found.images] == ["a.png"]


def test_deeply_nested_xml_is_refused():
    with pytest.raises(XmlError, match="deep"):
        parse_xml(b"<a>" * 100_000)


def test_a_folder_without_xml_or_without_images_is_refused(tmp_path, write_image):
    with pytest.raises(DataError, match="found no image file"):
        ImageFolder(str(tmp_path))
    write_image(tmp_path / "images" / "a.png")
    with pytest.raises(DataError, match=r"found no \.xml file"):
        read_voc(ImageFolder(str(tmp_path / "images")), str(tmp_path))


def test_annotations_without_any_object_have_no_classes(pack_files):
    with pytest.raises(DataError, match="found no <object> with a <name> in 1 XML files"):
        pack_files({"a.xml": voc_file()})


def fitted(pack_files, size: tuple[int, int], header: ImageHeader, *objects: str):
    found = pack_files({"a.xml": voc_file(*(objects or (voc_object(),)), size=size)})
    return fit(found.images[0], header)


def test_a_box_partly_outside_is_clipped_and_reported_and_one_pixel_is_rounding(pack_files):
    objects = [voc_object(xmax=65), voc_object(xmax=70), voc_object(xmin=-5, xmax=2)]
    fitted_objects, faults = fitted(pack_files, (64, 48), ImageHeader("PNG", 64, 48, 1), *objects)
    assert fitted_objects.boxes_xyxy.tolist() == [[10, 5, 64, 40], [10, 5, 64, 40], [0, 5, 2, 40]]
    assert [fault.code for fault in faults] == ["box_clipped", "box_clipped"]
    assert [fault.line for fault in faults] == [12, 20]


def test_a_box_outside_the_image_is_left_out_and_reported(pack_files):
    objects = [voc_object(xmin=65, xmax=80), voc_object(ymin=-9, ymax=0), voc_object()]
    fitted_objects, faults = fitted(pack_files, (64, 48), ImageHeader("PNG", 64, 48, 1), *objects)
    assert [fault.code for fault in faults] == ["box_outside_image"] * 2
    assert len(fitted_objects.labels) == 1


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [(5, [5, 10, 40, 30]), (6, [8, 10, 43, 30]), (7, [8, 34, 43, 54]), (8, [5, 34, 40, 54])],
)
def test_boxes_drawn_before_exif_orientation_are_turned_with_the_image(pack_files, orientation, expected):
    objects, faults = fitted(pack_files, (64, 48), ImageHeader("JPEG", 48, 64, orientation))
    assert objects.boxes_xyxy.tolist() == [expected]
    assert [fault.code for fault in faults] == ["size_mismatch"]


def test_a_turned_box_frames_the_same_pixels(tmp_path, write_image, pack_files):
    from yolor_ray.data.images.decode import decode
    from yolor_ray.data.images.header import read_header

    for orientation in (5, 6, 7, 8):
        upright = decode(write_image(tmp_path / "plain.png", seed=3).read_bytes())
        data = write_image(tmp_path / "turned.png", seed=3, orientation=orientation).read_bytes()
        objects, _ = fitted(pack_files, (64, 48), read_header(data), voc_object(xmin=9, ymin=9, xmax=16, ymax=32))
        x1, y1, x2, y2 = objects.boxes_xyxy[0].astype(int)
        inside = decode(data)[y1:y2, x1:x2]
        assert np.sort(inside.reshape(-1)).tolist() == np.sort(upright[8:32, 8:16].reshape(-1)).tolist()


def test_interchanged_width_and_height_are_reported_and_the_boxes_stay_where_they_fit(pack_files):
    objects, faults = fitted(pack_files, (48, 64), ImageHeader("PNG", 64, 48, 1))
    assert objects.boxes_xyxy.tolist() == [[10, 5, 30, 40]]
    assert [fault.code for fault in faults] == ["size_mismatch"]


def test_an_image_of_another_size_than_claimed_is_left_out(pack_files):
    objects, faults = fitted(pack_files, (128, 96), ImageHeader("PNG", 64, 48, 1))
    assert objects is None
    assert "found a claim of 128 x 96 px for an image of 64 x 48 px" in faults[0].message
    assert faults[0].line == 3


def test_a_claim_of_zero_pixels_is_no_claim(pack_files):
    objects, faults = fitted(pack_files, (0, 0), ImageHeader("PNG", 64, 48, 1))
    assert len(objects.labels) == 1
    assert faults == []


def test_bccd_has_the_known_boxes_and_two_faults(shared: Path):
    folder = shared / "datasets" / "bccd"
    found = read_voc(ImageFolder(str(folder / "JPEGImages")), str(folder / "Annotations"))
    assert found.classes == ("Platelets", "RBC", "WBC")
    assert sum(len(image.objects) for image in found.images) == 4886
    places = {(fault.code, Path(fault.file).name, fault.line) for fault in found.faults}
    assert places == {("zero_area_box", "BloodImage_00338.xml", 158), ("zero_area_box", "BloodImage_00343.xml", 50)}

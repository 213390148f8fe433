from pathlib import Path

import numpy as np
import pytest

from yolor_ray.data.images.header import ImageHeader
from yolor_ray.errors import DataError
from yolor_ray.pack.annotations.image_folder import ImageFolder
from yolor_ray.pack.annotations.normalize import normalize_objects
from yolor_ray.pack.annotations.safe_xml import XmlError, parse_xml
from yolor_ray.pack.annotations.voc import read_voc


def voc_object(name: str = "cat", xmin: object = 11, ymin: object = 6, xmax: object = 30, ymax: object = 40) -> str:
    corners = f"<xmin>{xmin}</xmin>\n<ymin>{ymin}</ymin>\n<xmax>{xmax}</xmax>\n<ymax>{ymax}</ymax>"
    return f"<object>\n<name>{name}</name>\n<difficult>1</difficult>\n<bndbox>{corners}</bndbox>\n</object>\n"


def voc_file(*objects: str, filename: str = "a.png", size: tuple[object, object] = (64, 48)) -> str:
    head = f"<annotation>\n<filename>{filename}</filename>\n<size><width>{size[0]}</width><height>{size[1]}</height></size>\n"
    return head + "".join(objects) + "</annotation>\n"


@pytest.fixture
def read(tmp_path, write_image):
    """Write images a.png, b.png, … and XML files; return the annotations that are read from the files."""

    def run(files: dict[str, str | bytes], images: tuple[str, ...] = ("a.png",), **options):
        for seed, name in enumerate(images):
            write_image(tmp_path / "images" / name, seed=seed)
        (tmp_path / "xml").mkdir(exist_ok=True)
        for name, text in files.items():
            (tmp_path / "xml" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "xml" / name).write_bytes(text.encode() if isinstance(text, str) else text)
        return read_voc(ImageFolder(str(tmp_path / "images")), str(tmp_path / "xml"), **options)

    return run


def codes(annotations) -> list[str]:
    return [fault.code for fault in annotations.faults]


def test_box_coordinates_are_one_based_and_inclusive(read):
    annotations = read({"a.xml": voc_file(voc_object(xmin=1, ymin=1, xmax=64, ymax=48), voc_object(xmin=11, ymin=6, xmax=30, ymax=40))})
    assert [obj.box for obj in annotations.images[0].objects] == [(0, 0, 64, 48), (10, 5, 30, 40)]
    assert annotations.faults == ()


def test_a_zero_coordinate_is_the_edge_and_a_box_outside_stays_outside(read):
    annotations = read({"a.xml": voc_file(voc_object(xmin=0, ymin=0.5), voc_object(xmin=-20))})
    assert [obj.box[:2] for obj in annotations.images[0].objects] == [(0, 0), (-20, 5)]


def test_a_difficult_object_is_an_object(read):
    assert len(read({"a.xml": voc_file(voc_object())}).images[0].objects) == 1


@pytest.mark.parametrize(("xmax", "ymax"), [(11, 40), (30, 6)])
def test_a_zero_area_box_is_reported_with_file_and_line(read, xmax, ymax):
    annotations = read({"a.xml": voc_file(voc_object(), voc_object(xmax=xmax, ymax=ymax))})
    (fault,) = annotations.faults
    assert fault.code == "zero_area_box"
    assert fault.location.endswith("a.xml:12")
    assert f"xmax {xmax}, ymax {ymax}" in fault.message and "'a.png'" in fault.message
    assert len(annotations.images[0].objects) == 1


@pytest.mark.parametrize("value", ["", "abc", "nan", "inf", "1e400", "1,5"])
def test_a_coordinate_that_is_not_a_number_is_reported(read, value):
    annotations = read({"a.xml": voc_file(voc_object(xmin=value))})
    assert codes(annotations) == ["not_a_number"]
    assert f"xmin {value!r}" in annotations.faults[0].message


def test_an_object_without_box_is_reported(read):
    assert codes(read({"a.xml": voc_file("<object><name>cat</name></object>")})) == ["missing_box"]


def test_classes_are_collected_from_all_files_also_outside_the_split(read, tmp_path):
    (tmp_path / "split.txt").write_text("a\n")
    files = {"a.xml": voc_file(voc_object("dog")), "b.xml": voc_file(voc_object("ant"), filename="b.png")}
    annotations = read(files, ("a.png", "b.png"), split_file=str(tmp_path / "split.txt"))
    assert annotations.classes == ("ant", "dog")
    assert [image.name for image in annotations.images] == ["a.png"]
    assert annotations.images[0].objects[0].label == 1


def test_other_names_than_the_given_classes_are_unknown(read):
    annotations = read({"a.xml": voc_file(voc_object("dog"), voc_object("cat"))}, classes=["cat"])
    assert annotations.classes == ("cat",)
    assert codes(annotations) == ["unknown_class"]
    assert "found class 'dog', expected one of cat" in annotations.faults[0].message


def test_an_image_is_found_by_filename_else_by_stem(read):
    files = {"a.xml": voc_file(filename="x/y\\b.png"), "c.xml": voc_file(voc_object(), filename="gone.png")}
    annotations = read(files, ("b.png", "c.png"))
    assert [image.name for image in annotations.images] == ["b.png", "c.png"]
    assert annotations.faults == ()


@pytest.mark.parametrize("filename", ["IMG_1.png", "C:\\x\\IMG_1.png", "/data/IMG_1.png", "IMG_1", "IMG_1.jpg", "img_1.PNG"])
@pytest.mark.parametrize("first", [True, False], ids=["both annotated", "one annotated"])
def test_the_name_of_the_xml_file_decides_against_another_existing_image(read, tmp_path, filename, first):
    (tmp_path / "split.txt").write_text("IMG_2\n")
    files = {"IMG_2.xml": voc_file(voc_object(), filename=filename)}
    files |= {"IMG_1.xml": voc_file(voc_object("dog"), filename="IMG_1.png")} if first else {}
    annotations = read(files, ("IMG_1.png", "IMG_2.png"), split_file=str(tmp_path / "split.txt"))
    assert [image.name for image in annotations.images] == ["IMG_2.png"]
    (fault,) = annotations.faults
    assert (fault.code, fault.line, Path(fault.file).name) == ("name_mismatch", 2, "IMG_2.xml")
    assert repr(filename) in fault.message and "'IMG_2.png'" in fault.message


@pytest.mark.parametrize(
    "filename", ["", "gone.jpg", "C:\\x\\IMG_2.png", "IMG_2.jpeg", "IMG_2", "/a/b/IMG_2.png", "x/IMG_2.png", "%49MG_2.png"]
)
def test_the_name_of_the_xml_file_finds_the_image_where_filename_names_no_other(read, filename):
    annotations = read({"IMG_2.xml": voc_file(voc_object(), filename=filename)}, ("IMG_2.png",))
    assert ([image.name for image in annotations.images], annotations.faults) == (["IMG_2.png"], ())


@pytest.mark.parametrize("filename", ["photo.png", "photo", "photo.jpg", "D:\\photo.png", "sub/photo.png", "photo.PNG"])
def test_filename_finds_the_image_where_no_image_has_the_name_of_the_xml_file(read, filename):
    annotations = read({"0001.xml": voc_file(voc_object(), filename=filename)}, ("sub/photo.png",))
    assert ([image.name for image in annotations.images], annotations.faults) == (["sub/photo.png"], ())


def test_interchanged_filenames_go_by_the_names_of_the_xml_files(read):
    files = {"a.xml": voc_file(voc_object("cat"), filename="b.png"), "b.xml": voc_file(voc_object("dog"), filename="a.png")}
    annotations = read(files, ("a.png", "b.png"))
    assert [(image.name, annotations.classes[image.objects[0].label]) for image in annotations.images] == [
        ("a.png", "cat"),
        ("b.png", "dog"),
    ]
    assert codes(annotations) == ["name_mismatch"] * 2


def test_an_image_with_an_xml_file_of_its_name_is_not_annotated_by_another(read, tmp_path):
    (tmp_path / "split.txt").write_text("copy\n")
    files = {"a.xml": voc_file(voc_object()), "copy.xml": voc_file(voc_object(xmax=40))}
    assert [image.objects[0].box[2] for image in read(files).images] == [30]
    with_split = read(files, split_file=str(tmp_path / "split.txt"))
    assert (with_split.images, codes(with_split)) == ((), ["duplicate_id"])
    assert "a.xml annotates it" in with_split.faults[0].message


@pytest.mark.parametrize(("xmax", "kept"), [(30, 1), (40, 0)], ids=["equal", "different"])
def test_two_xml_files_of_other_names_annotate_an_image_only_if_they_agree(read, xmax, kept):
    files = {name: voc_file(voc_object(xmax=side), filename="photo.png") for name, side in (("1.xml", 30), ("2.xml", xmax))}
    annotations = read(files, ("photo.png",))
    assert (len(annotations.images), codes(annotations)) == (kept, ["duplicate_id"] * (2 - kept))


def test_two_images_of_one_stem_are_told_apart_by_filename_or_left_out(read):
    images = ("IMG.jpg", "IMG.png")
    assert [image.name for image in read({"IMG.xml": voc_file(voc_object(), filename="IMG.png")}, images).images] == ["IMG.png"]
    annotations = read({"IMG.xml": voc_file(voc_object(), filename="")}, images)
    assert annotations.images == ()
    fault = annotations.faults[0]
    assert (fault.code, "IMG.jpg, IMG.png" in fault.message) == ("ambiguous_image", True)


def test_images_and_xml_files_in_folders_match_by_folder(read):
    files = {"x/1.xml": voc_file(voc_object("cat"), filename="1.png"), "y/1.xml": voc_file(voc_object("dog"), filename="1.png")}
    annotations = read(files, ("x/1.png", "y/1.png"))
    assert [(image.name, annotations.classes[image.objects[0].label]) for image in annotations.images] == [
        ("x/1.png", "cat"),
        ("y/1.png", "dog"),
    ]
    assert annotations.faults == ()


@pytest.mark.parametrize("line", ["x\\a.png", "./x/a.png", "/data/imgs/x/a.jpg", "x/a", "images/x/a", "https://host.example/x/a.png?v=1"])
def test_a_line_of_a_split_file_is_a_name_as_tools_write_it(read, tmp_path, line):
    (tmp_path / "split.txt").write_text(f"{line}\n")
    files = {"x/a.xml": voc_file(voc_object()), "y/b.xml": voc_file(voc_object(), filename="b.png")}
    annotations = read(files, ("x/a.png", "y/b.png"), split_file=str(tmp_path / "split.txt"))
    assert ([image.name for image in annotations.images], annotations.faults) == (["x/a.png"], ())


def test_a_line_of_a_split_file_for_two_xml_files_is_a_fault_with_both(read, tmp_path):
    (tmp_path / "split.txt").write_text("a.png\n")
    files = {name: voc_file(voc_object()) for name in ("x/a.xml", "y/a.xml")}
    annotations = read(files, ("x/a.png", "y/a.png"), split_file=str(tmp_path / "split.txt"))
    (fault,) = annotations.faults
    assert (annotations.images, fault.code, fault.line) == ((), "ambiguous_image", 1)
    assert "'x/a'" in fault.message and "'y/a'" in fault.message


def test_a_missing_image_is_reported_with_the_line_of_its_name(read):
    annotations = read({"a.xml": voc_file(voc_object()), "z.xml": voc_file(filename="gone.png")})
    (fault,) = annotations.faults
    assert (fault.code, fault.line) == ("missing_image", 2)
    assert "'gone.png'" in fault.message


def test_two_annotation_files_of_one_image_are_a_duplicate(read):
    annotations = read({"a.xml": voc_file(voc_object()), "b.xml": voc_file(voc_object())})
    assert codes(annotations) == ["duplicate_id"]
    assert "a.xml" in annotations.faults[0].message and annotations.faults[0].file.endswith("b.xml")


def test_an_image_without_xml_is_not_a_background(read):
    annotations = read({"a.xml": voc_file(voc_object())}, ("a.png", "b.png"))
    assert codes(annotations) == ["missing_annotation"]
    assert annotations.faults[0].file.endswith("b.png")


def test_a_split_file_may_hold_stems_names_paths_and_class_flags(read, tmp_path):
    files = {f"{name}.xml": voc_file(voc_object(), filename=f"{name}.png") for name in ("a", "b b", "c", "d")}
    (tmp_path / "split.txt").write_bytes("\ufeffa\r\nJPEGImages/b b.png\r\n\r\nc  -1\r\nmissing\r\na.png\r\n".encode())
    annotations = read(files, ("a.png", "b b.png", "c.png", "d.png"), split_file=str(tmp_path / "split.txt"))
    assert [image.name for image in annotations.images] == ["a.png", "b b.png", "c.png"]
    assert [(fault.code, fault.line) for fault in annotations.faults] == [("missing_annotation", 5), ("duplicate_id", 6)]


def test_names_match_across_case_and_unicode_composition(read):
    annotations = read({"a.xml": voc_file(voc_object(), filename="caf\u00e9.png")}, ("CAFE\u0301.PNG",))
    assert [image.name for image in annotations.images] == ["CAFE\u0301.PNG"]


def test_a_hidden_file_is_neither_annotation_nor_image(read):
    annotations = read({"a.xml": voc_file(voc_object()), "._a.xml": b"\0\1"}, ("a.png", "._a.png"))
    assert annotations.faults == ()


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
    ids=["malformed", "empty", "another root", "entity bomb", "external entity", "encoding"],
)
def test_bad_xml_is_reported_with_its_line_and_other_files_are_read(read, text, line):
    annotations = read({"a.xml": voc_file(voc_object()), "b.xml": text}, ("a.png", "b.png"))
    assert [(fault.code, fault.line) for fault in annotations.faults] == [("bad_xml", line)]
    assert [image.name for image in annotations.images] == ["a.png"]


def test_deeply_nested_xml_is_refused():
    with pytest.raises(XmlError, match="deep"):
        parse_xml(b"<a>" * 100_000)


def test_a_folder_without_xml_or_without_images_is_refused(tmp_path, write_image):
    with pytest.raises(DataError, match="found no image file"):
        ImageFolder(str(tmp_path))
    write_image(tmp_path / "images" / "a.png")
    with pytest.raises(DataError, match=r"found no \.xml file"):
        read_voc(ImageFolder(str(tmp_path / "images")), str(tmp_path))


def test_annotations_without_any_object_have_no_classes(read):
    with pytest.raises(DataError, match="found no <object> with a <name> in 1 XML files"):
        read({"a.xml": voc_file()})


def test_xml_files_that_are_all_unreadable_are_refused_with_their_faults(read):
    files = {
        "a.xml": "<annotation>\n<filename>a & b.png</filename></annotation>",
        "b.xml": "",
        "c.xml": "<annotation>\n\n<x>\xe9".encode("latin-1"),
    }
    with pytest.raises(DataError) as caught:
        read(files)
    message = str(caught.value)
    assert "found no readable XML file" in message and "found no <object>" not in message
    for location in ("a.xml:2: bad_xml", "b.xml:1: bad_xml", "c.xml:3: bad_xml"):
        assert location in message


def test_many_unreadable_xml_files_are_counted_and_the_first_shown(read):
    with pytest.raises(DataError, match=r"found no <object> with a <name> in 1 XML files, expected at least one; 9 files cannot be read"):
        read({**{f"{index}.xml": "<a" for index in range(9)}, "z.xml": voc_file()})


@pytest.mark.parametrize(("width", "height"), [("640", 48), ("640.0", 48), ("6.4e2", "48.0"), (64, 480)])
def test_a_claimed_size_of_another_image_leaves_the_image_out(read, width, height):
    objects, faults = normalize(read, (width, height), ImageHeader("PNG", 64, 48, 1))
    assert (objects, [fault.code for fault in faults]) == (None, ["size_mismatch"])


@pytest.mark.parametrize("side", ["", "wide", "nan", "inf", "-64", "0", "None"])
def test_an_unreadable_size_is_no_claim(read, side):
    objects, faults = normalize(read, (side, 48), ImageHeader("PNG", 64, 48, 1))
    assert (len(objects.labels), faults) == (1, [])


def normalize(read, size: tuple[object, object], header: ImageHeader, *objects: str):
    annotations = read({"a.xml": voc_file(*(objects or (voc_object(),)), size=size)})
    return normalize_objects(annotations.images[0], header)


def test_a_box_partly_outside_is_clipped_and_reported_unless_by_one_pixel(read):
    objects = [voc_object(xmax=65), voc_object(xmax=70), voc_object(xmin=-5, xmax=2)]
    normalized, faults = normalize(read, (64, 48), ImageHeader("PNG", 64, 48, 1), *objects)
    assert normalized.boxes_xyxy.tolist() == [[10, 5, 64, 40], [10, 5, 64, 40], [0, 5, 2, 40]]
    assert [fault.code for fault in faults] == ["box_clipped", "box_clipped"]
    assert [fault.line for fault in faults] == [12, 20]


def test_a_box_outside_the_image_is_left_out_and_reported(read):
    objects = [voc_object(xmin=65, xmax=80), voc_object(ymin=-9, ymax=0), voc_object()]
    normalized, faults = normalize(read, (64, 48), ImageHeader("PNG", 64, 48, 1), *objects)
    assert [fault.code for fault in faults] == ["box_outside_image"] * 2
    assert len(normalized.labels) == 1


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [(5, [5, 10, 40, 30]), (6, [8, 10, 43, 30]), (7, [8, 34, 43, 54]), (8, [5, 34, 40, 54])],
)
def test_boxes_in_the_frame_before_exif_orientation_are_turned_with_the_image(read, orientation, expected):
    objects, faults = normalize(read, (64, 48), ImageHeader("JPEG", 48, 64, orientation))
    assert objects.boxes_xyxy.tolist() == [expected]
    assert [fault.code for fault in faults] == ["size_mismatch"]


def test_a_turned_box_frames_the_same_pixels(tmp_path, write_image, read):
    from yolor_ray.data.images.decode import decode
    from yolor_ray.data.images.header import read_header

    for orientation in (5, 6, 7, 8):
        upright = decode(write_image(tmp_path / "plain.png", seed=3).read_bytes())
        data = write_image(tmp_path / "turned.png", seed=3, orientation=orientation).read_bytes()
        objects, _ = normalize(read, (64, 48), read_header(data), voc_object(xmin=9, ymin=9, xmax=16, ymax=32))
        x1, y1, x2, y2 = objects.boxes_xyxy[0].astype(int)
        inside = decode(data)[y1:y2, x1:x2]
        assert np.sort(inside.reshape(-1)).tolist() == np.sort(upright[8:32, 8:16].reshape(-1)).tolist()


def test_interchanged_width_and_height_are_reported_and_fitting_boxes_stay(read):
    objects, faults = normalize(read, (48, 64), ImageHeader("PNG", 64, 48, 1))
    assert objects.boxes_xyxy.tolist() == [[10, 5, 30, 40]]
    assert [fault.code for fault in faults] == ["size_mismatch"]


def test_an_image_of_another_size_than_declared_is_left_out(read):
    objects, faults = normalize(read, (128, 96), ImageHeader("PNG", 64, 48, 1))
    assert objects is None
    assert "found a declared size of 128 x 96 px for an image of 64 x 48 px" in faults[0].message
    assert faults[0].line == 3


def test_a_declared_size_of_zero_is_ignored(read):
    objects, faults = normalize(read, (0, 0), ImageHeader("PNG", 64, 48, 1))
    assert len(objects.labels) == 1
    assert faults == []


def test_bccd_has_the_known_boxes_and_two_faults(shared: Path):
    folder = shared / "datasets" / "bccd"
    annotations = read_voc(ImageFolder(str(folder / "JPEGImages")), str(folder / "Annotations"))
    assert annotations.classes == ("Platelets", "RBC", "WBC")
    assert sum(len(image.objects) for image in annotations.images) == 4886
    locations = {(fault.code, Path(fault.file).name, fault.line) for fault in annotations.faults}
    assert locations == {("zero_area_box", "BloodImage_00338.xml", 158), ("zero_area_box", "BloodImage_00343.xml", 50)}

import pytest

from yolor_ray.data.images.header import ImageHeader
from yolor_ray.pack.annotations.image_folder import ImageFolder
from yolor_ray.pack.annotations.normalize import normalize_objects
from yolor_ray.pack.annotations.yolo.read import read_yolo

GOOD = "0 0.5 0.5 0.25 0.5"


@pytest.fixture
def read(tmp_path, write_image):
    """Write label files and images; return the annotations that are read from the files."""

    def run(files: dict[str, str | bytes], images: tuple[str, ...] = ("a.png",), names: str = "cat\ndog\n"):
        for seed, name in enumerate(images):
            write_image(tmp_path / "images" / name, seed=seed)
        for name, text in files.items():
            (tmp_path / "labels" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "labels" / name).write_bytes(text.encode() if isinstance(text, str) else text)
        (tmp_path / "names.txt").write_text(names)
        return read_yolo(ImageFolder(str(tmp_path / "images")), str(tmp_path / "labels"), str(tmp_path / "names.txt"))

    return run


def test_fractions_become_pixels_of_the_real_image(read):
    annotations = read({"a.txt": GOOD})
    objects, faults = normalize_objects(annotations.images[0], ImageHeader("PNG", 64, 48, 1))
    assert objects.boxes_xyxy.tolist() == [[24, 12, 40, 36]]
    assert objects.areas.tolist() == [16 * 24]
    assert faults == []


def test_bom_carriage_returns_tabs_and_blank_lines_are_accepted(read):
    annotations = read({"a.txt": "\ufeff0\t0.5\t0.5 0.2  0.2\r\n\r\n   \r\n1 0.5 0.5 1 1\r\n"})
    assert [obj.label for obj in annotations.images[0].objects] == [0, 1]
    assert annotations.faults == ()


def test_an_image_without_or_with_an_empty_label_file_is_a_background(read):
    annotations = read({"a.txt": "", "b.txt": GOOD}, ("a.png", "b.png", "c.png"))
    assert {image.name: len(image.objects) for image in annotations.images} == {"a.png": 0, "b.png": 1, "c.png": 0}
    assert annotations.faults == ()


def test_an_image_without_label_file_is_unknown_where_a_label_file_matches_no_image(read):
    annotations = read({"a.txt": GOOD, "holiday_2.txt": GOOD}, ("a.png", "holiday 2.png"))
    assert [image.name for image in annotations.images] == ["a.png"]
    assert sorted(fault.code for fault in annotations.faults) == ["missing_annotation", "missing_image"]


def test_a_text_file_without_labels_makes_no_image_unknown(read):
    annotations = read({"a.txt": GOOD, "notes.txt": "labelled by two persons in 2026\n"}, ("a.png", "b.png"))
    assert sorted(image.name for image in annotations.images) == ["a.png", "b.png"]
    assert [fault.code for fault in annotations.faults] == ["missing_image"]


def test_a_label_file_may_keep_the_suffix_of_its_image(read):
    annotations = read({"a.png.txt": GOOD, "b.PNG.TXT": GOOD}, ("a.png", "b.png"))
    assert {image.name: len(image.objects) for image in annotations.images} == {"a.png": 1, "b.png": 1}
    assert annotations.faults == ()


@pytest.mark.parametrize(
    ("line", "code", "hint"),
    [
        ("0 0.5 0.5 0.2", "bad_line", "found 4 columns, expected 5"),
        ("0 0.5 0.5 0.2 0.2 0.9", "bad_line", "looks like predictions with a confidence"),
        ("0 0.1 0.1 0.2 0.1 0.2 0.2 0.9", "bad_line", "looks like a polygon with a confidence"),
        ("0,0.5,0.5,0.2,0.2", "bad_line", "separate by spaces, not commas"),
        ("1.5 0.5 0.5 0.2 0.2", "bad_class_id", "found class '1.5', expected a whole number"),
        ("nan 0.5 0.5 0.2 0.2", "bad_class_id", "found class 'nan', expected a whole number"),
        ("1e99 0.5 0.5 0.2 0.2", "unknown_class", "found class 1e99, expected 0 to 1"),
        ("cat 0.5 0.5 0.2 0.2", "bad_class_id", "found class 'cat', expected a whole number"),
        ("2 0.5 0.5 0.2 0.2", "unknown_class", "found class 2, expected 0 to 1"),
        ("-1 0.5 0.5 0.2 0.2", "unknown_class", "found class -1, expected 0 to 1"),
        ("0 nan 0.5 0.2 0.2", "not_a_number", "found nan, expected 4 numbers after the class"),
        ("0 0.5 0_5 0.2 0.2", "not_a_number", "found 0_5, expected 4 numbers"),
        ("0 0.5 1e400 0.2 0.2", "not_a_number", "found 1e400, expected 4 numbers"),
        ("0 0,5 0,5 0,2 0,2", "not_a_number", "write decimal points, not commas"),
        ("0 0.5 0.5 0 0.2", "zero_area_box", "expected w and h above 0"),
        ("0 0.5 0.5 0.2 -0.2", "not_normalised", "expected w and h above 0"),
        ("0 320 240 64 48", "not_normalised", "looks like pixels, not fractions"),
        ("0 1.2 0.5 0.2 0.2", "not_normalised", "expected fractions from 0 to 1"),
        ("0 -0.2 0.5 0.2 0.2", "not_normalised", "expected fractions from 0 to 1"),
    ],
)
def test_a_bad_line_is_reported_with_location_and_hint_and_other_lines_stay(read, line, code, hint):
    annotations = read({"a.txt": f"{GOOD}\n{line}\n{GOOD}\n"})
    (fault,) = annotations.faults
    assert fault.code == code
    assert fault.location.endswith("a.txt:2")
    assert hint in fault.message
    assert len(annotations.images[0].objects) == 2


def test_ten_thousand_boxes_of_the_whole_image_are_read(read):
    annotations = read({"a.txt": "0 0.5 0.5 1 1\n" * 10_000})
    objects, faults = normalize_objects(annotations.images[0], ImageHeader("PNG", 64, 48, 1))
    assert objects.boxes_xyxy.shape == (10_000, 4)
    assert objects.boxes_xyxy[-1].tolist() == [0, 0, 64, 48]
    assert faults == []


def test_a_label_file_without_image_is_reported(read):
    annotations = read({"a.txt": GOOD, "z.txt": GOOD, "classes.txt": "cat"})
    assert [(fault.code, fault.file.rsplit("/", 1)[-1]) for fault in annotations.faults] == [("missing_image", "z.txt")]


def test_an_image_whose_label_file_is_not_text_is_left_out(read):
    annotations = read({"a.txt": b"\xff\xfe0\0", "b.txt": GOOD}, ("a.png", "b.png"))
    assert [fault.code for fault in annotations.faults] == ["bad_encoding"]
    assert [image.name for image in annotations.images] == ["b.png"]


def test_names_match_in_subfolders_and_with_odd_characters(read):
    names = ("x/a b.png", "y/a b.png", "-dash.png", "cafe\u0301.png")
    annotations = read({"x/a b.txt": GOOD, "y/a b.txt": "", "-dash.txt": GOOD, "caf\u00e9.txt": GOOD}, names)
    assert {image.name: len(image.objects) for image in annotations.images} == dict(zip(names, (1, 0, 1, 1), strict=True))
    assert annotations.faults == ()


def test_two_images_with_one_stem_share_a_label_file_with_a_warning(read, caplog):
    annotations = read({"a.txt": GOOD}, ("a.png", "a.jpg"))
    assert [len(image.objects) for image in annotations.images] == [1, 1]
    assert "event=shared_text_files files=1 example='a.txt of a.jpg, a.png'" in caplog.text


def test_the_suffix_in_the_name_of_a_label_file_tells_images_of_one_stem_apart(read, caplog):
    annotations = read({"a.jpg.txt": GOOD, "a.png.txt": ""}, ("a.jpg", "a.png"))
    assert {image.name: len(image.objects) for image in annotations.images} == {"a.jpg": 1, "a.png": 0}
    assert annotations.faults == ()
    assert "event=shared_text_files" not in caplog.text

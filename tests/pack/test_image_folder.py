"""The images of a folder: content decides, and no file is passed over in silence."""

import pytest

from packed import all_records
from yolor_ray.config import PackCropsConfig, PackYoloConfig
from yolor_ray.errors import DataError
from yolor_ray.pack.annotations.image_folder import ImageFolder
from yolor_ray.pack.run import pack


def test_the_content_decides_which_files_are_images(tmp_path, write_image):
    names = ("a.jfif", "b.jpe", "c.JPEG", "d.pjpeg", "e", "f.v2", "g.png", "sub/h.image", "i.tif")
    for number, name in enumerate(names):
        data = write_image(tmp_path / "source.jpg", seed=number).read_bytes()
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(data)
    (tmp_path / "labels" / "sub").mkdir(parents=True)
    for stem in ("a", "b", "c", "d", "e", "f", "g", "sub/h", "i"):
        (tmp_path / "labels" / f"{stem}.txt").write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "names.txt").write_text("cat\n")
    sources = {"images": str(tmp_path / "images"), "annotations": str(tmp_path / "labels"), "names": str(tmp_path / "names.txt")}
    result = pack(PackYoloConfig(**sources, output=str(tmp_path / "out")))
    assert (result["images"], result["boxes"], result["faults"]) == (9, 9, {})
    assert sorted(record.name for record in all_records(str(tmp_path / "out"))) == sorted(names)


def test_files_that_are_no_images_are_counted_in_a_warning_with_examples(tmp_path, write_image, caplog):
    write_image(tmp_path / "a.png")
    for name, data in {"b.gif": b"GIF89a", "c.heic": b"\0\0\0\x18ftypheic", "empty": b"", ".DS_Store": b"x", "a.txt": b"0 1"}.items():
        (tmp_path / name).write_bytes(data)
    assert list(ImageFolder(str(tmp_path)).files) == ["a.png"]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert (
        "event=no_images files=4 by_suffix='.gif 1, .heic 1, .txt 1, no suffix 1' hidden=1 examples='b.gif, c.heic, empty'"
        in record.message
    )


def test_label_files_beside_images_are_counted_without_a_warning(tmp_path, write_image, caplog):
    write_image(tmp_path / "a.png")
    for name in ("a.txt", "a.xml", "coco.json", "Thumbs.db"):
        (tmp_path / name).write_text("x")
    with caplog.at_level("INFO"):
        ImageFolder(str(tmp_path))
    assert [(record.levelname, "files=4" in record.message) for record in caplog.records] == [("INFO", True)]


def test_label_files_beside_images_are_read(tmp_path, write_image):
    write_image(tmp_path / "set" / "a.png")
    (tmp_path / "set" / "a.txt").write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "set" / "classes.txt").write_text("cat\n")
    sources = {"images": str(tmp_path / "set"), "annotations": str(tmp_path / "set"), "names": str(tmp_path / "set" / "classes.txt")}
    result = pack(PackYoloConfig(**sources, output=str(tmp_path / "out")))
    assert (result["images"], result["boxes"], result["faults"]) == (1, 1, {})


def test_a_page_under_the_name_of_an_image_is_a_fault(tmp_path, write_image):
    write_image(tmp_path / "images" / "cat_1.png")
    (tmp_path / "images" / "cat_2.jpg").write_text("<html>not found</html>")
    result = pack(PackCropsConfig(images=str(tmp_path / "images"), pattern=r"(?P<identity>cat_\d)", output=str(tmp_path / "out")))
    assert (result["images"], result["faults"]) == (1, {"broken_image": 1})


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "a.gif").write_bytes(b"GIF89a")
    with pytest.raises(DataError, match="found no image file, expected JPEG, PNG, WebP, BMP or TIFF"):
        ImageFolder(str(tmp_path))

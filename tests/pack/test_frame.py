"""The frame of boxes on images with an EXIF orientation: the displayed image, or the image as stored."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from packed import all_records
from pictures import stored
from yolor_ray.config import PackCocoConfig, PackVocConfig, PackYoloConfig
from yolor_ray.data import rle
from yolor_ray.data.images.decode import decode
from yolor_ray.pack.run import pack

DISPLAYED, STORED = (48, 64), (64, 48)
TALL = ((10, 50, 40, 64), (10, 5, 40, 19))
"""Boxes that only an image of 48 x 64 px holds."""
WIDE = ((50, 10, 64, 40), (5, 10, 19, 40))
"""Boxes that only an image of 64 x 48 px holds."""
BOTH = ((5, 10, 19, 40), (20, 20, 40, 44))
"""Boxes that either image holds."""
TURNED = {
    5: ((10, 5, 40, 19), (20, 20, 44, 40)),
    6: ((8, 5, 38, 19), (4, 20, 28, 40)),
    7: ((8, 45, 38, 59), (4, 24, 28, 44)),
    8: ((10, 45, 40, 59), (20, 24, 44, 44)),
}
"""BOTH, turned from the stored image to the displayed one, by EXIF orientation."""


def write_photo(folder: Path, orientation: int) -> None:
    """Write a.jpg, which is displayed as 48 x 64 px if its orientation is 5 to 8, and else as 64 x 48 px."""
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(folder / "a.jpg", exif=exif)


def write_coco(path: Path, claimed: object, boxes: tuple, segmentations: tuple = ()) -> None:
    width, height = claimed or (None, None)
    entries = [{"image_id": 1, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1]} for x1, y1, x2, y2 in boxes]
    for entry, segmentation in zip(entries, segmentations, strict=False):
        entry["segmentation"] = segmentation
    images = [{"id": 1, "file_name": "a.jpg", "width": width, "height": height}]
    path.write_text(json.dumps({"images": images, "annotations": entries, "categories": [{"id": 1, "name": "cat"}]}))


def write_voc(folder: Path, claimed: object, boxes: tuple) -> None:
    folder.mkdir()
    size = f"<size><width>{claimed[0]}</width><height>{claimed[1]}</height></size>" if claimed else ""
    edges = [f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>" for x1, y1, x2, y2 in boxes]
    objects = "".join(f"<object><name>cat</name><bndbox>{edge}</bndbox></object>" for edge in edges)
    (folder / "a.xml").write_text(f"<annotation><filename>a.jpg</filename>{size}{objects}</annotation>")


@pytest.fixture(params=["coco", "voc"])
def pack_photo(request, tmp_path):
    """Pack one photo; return the boxes of its record and the faults by code."""

    def run(orientation: int, claimed: object, boxes: tuple) -> tuple[list, dict]:
        write_photo(tmp_path / "images", orientation)
        sources = {"images": str(tmp_path / "images"), "annotations": str(tmp_path / "annotations"), "output": str(tmp_path / "out")}
        if request.param == "coco":
            write_coco(tmp_path / "annotations", claimed, boxes)
            result = pack(PackCocoConfig(**sources))
        else:
            write_voc(tmp_path / "annotations", claimed, boxes)
            result = pack(PackVocConfig(**sources, classes="cat"))
        (record,) = all_records(str(tmp_path / "out"))
        return record.objects.boxes_xyxy.tolist(), result["faults"]

    return run


def lists(boxes: tuple) -> list:
    return [list(box) for box in boxes]


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize(("claimed", "faults"), [(STORED, {"size_mismatch": 1}), (DISPLAYED, {}), (None, {})])
def test_boxes_that_only_the_displayed_image_holds_stay(pack_photo, orientation, claimed, faults):
    assert pack_photo(orientation, claimed, TALL) == (lists(TALL), faults)


@pytest.mark.parametrize(("orientation", "expected"), [(5, 50), (6, 50), (7, 0), (8, 0)])
@pytest.mark.parametrize("claimed", [STORED, DISPLAYED, None])
def test_boxes_that_only_the_stored_image_holds_are_turned(pack_photo, orientation, expected, claimed):
    boxes, faults = pack_photo(orientation, claimed, WIDE)
    assert boxes[0][1::2] == [expected, expected + 14]
    assert faults == {"size_mismatch": 1}


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("claimed", [STORED, DISPLAYED, None])
def test_the_claimed_size_decides_where_both_images_hold_the_boxes(pack_photo, orientation, claimed):
    expected = (lists(TURNED[orientation]), {"size_mismatch": 1}) if claimed == STORED else (lists(BOTH), {})
    assert pack_photo(orientation, claimed, BOTH) == expected


@pytest.mark.parametrize("orientation", [1, 2, 3, 4])
def test_boxes_stay_where_orientation_keeps_the_size(pack_photo, orientation):
    assert pack_photo(orientation, STORED, WIDE) == (lists(WIDE), {})


@pytest.mark.parametrize(("claimed", "faults"), [(STORED, {"size_mismatch": 1}), (DISPLAYED, {}), (None, {})])
def test_a_photo_without_boxes_stays_a_background(pack_photo, claimed, faults):
    assert pack_photo(6, claimed, ()) == ([], faults)


def test_the_claimed_frame_decides_where_no_image_holds_all_boxes(pack_photo):
    boxes, faults = pack_photo(6, STORED, (*WIDE, (10, 50, 40, 64)))
    assert boxes[0] == [8, 50, 38, 64]
    assert faults == {"size_mismatch": 1, "box_outside_image": 1}


def test_fractions_belong_to_the_displayed_image(tmp_path):
    write_photo(tmp_path / "images", 6)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.25 0.5 0.25\n")
    (tmp_path / "names.txt").write_text("cat\n")
    sources = {name: str(tmp_path / name) for name in ("images", "output")}
    result = pack(PackYoloConfig(**sources, annotations=str(tmp_path / "labels"), names=str(tmp_path / "names.txt")))
    (record,) = all_records(str(tmp_path / "output"))
    assert (record.objects.boxes_xyxy.tolist(), result["faults"]) == ([[12, 8, 36, 24]], {})


@pytest.mark.parametrize("claimed", [STORED, DISPLAYED])
@pytest.mark.parametrize(("size", "turned"), [(STORED, True), (DISPLAYED, False)])
def test_the_size_of_run_lengths_decides_before_the_claimed_size(tmp_path, claimed, size, turned):
    write_photo(tmp_path / "images", 6)
    mask = np.zeros(size[::-1], bool)
    mask[10:40, 5:19] = True
    runs = {"size": list(size[::-1]), "counts": rle.encode_mask(mask).decode()}
    write_coco(tmp_path / "coco.json", claimed, BOTH[:1], (runs,))
    pack(PackCocoConfig(images=str(tmp_path / "images"), annotations=str(tmp_path / "coco.json"), output=str(tmp_path / "out")))
    (record,) = all_records(str(tmp_path / "out"))
    box = TURNED[6][0] if turned else BOTH[0]
    assert record.objects.boxes_xyxy.tolist() == [list(box)]
    x1, y1, x2, y2 = box
    expected = np.zeros((64, 48), bool)
    expected[y1:y2, x1:x2] = True
    assert (rle.decode_mask(record.objects.masks[0], 48, 64) == expected).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_box_of_a_bright_square_frames_it_in_either_frame(tmp_path, orientation):
    """A square is drawn on the displayed image; its box is stated in the displayed frame, and in the stored frame where sizes differ."""
    upright = np.zeros((64, 48, 3) if orientation >= 5 else (48, 64, 3), np.uint8)
    upright[8:24, 16:24] = 255
    raw = stored(Image.fromarray(upright), orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "images").mkdir()
    raw.save(tmp_path / "images" / "a.jpg", exif=exif, quality=100)
    rows, columns = np.nonzero(np.asarray(raw)[..., 0])
    in_stored = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    for index, (claimed, box) in enumerate(
        [(upright.shape[1::-1], (16, 8, 24, 24)), *([(raw.size, in_stored)] if orientation >= 5 else [])]
    ):
        write_coco(tmp_path / "coco.json", claimed, (box,))
        out = str(tmp_path / f"out{index}")
        pack(PackCocoConfig(images=str(tmp_path / "images"), annotations=str(tmp_path / "coco.json"), output=out))
        (record,) = all_records(out)
        assert record.objects.boxes_xyxy.tolist() == [[16, 8, 24, 24]]
        x1, y1, x2, y2 = record.objects.boxes_xyxy[0].astype(int)
        assert decode(record.image)[y1:y2, x1:x2].mean() > 200

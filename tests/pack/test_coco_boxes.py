"""Boxes and masks of COCO annotations: boxes from masks where there is no box, and masks with unusable pieces."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from yolor_ray.class_names import keypoint_flags
from yolor_ray.data import rle
from yolor_ray.data.images.header import ImageHeader
from yolor_ray.pack.annotations.coco import read_coco
from yolor_ray.pack.annotations.image_folder import ImageFolder
from yolor_ray.pack.annotations.masks import MaskError, encode_segmentation, segmentation_bounds
from yolor_ray.pack.annotations.normalize import normalize_objects

WIDTH, HEIGHT = 64, 48
HEADER = ImageHeader("PNG", WIDTH, HEIGHT, 1)
SQUARE = [5, 5, 25, 5, 25, 25, 5, 25]
TRIANGLE = [5, 5, 25, 5, 15, 25]


@pytest.fixture
def read(tmp_path, write_image):
    """Read one image with these annotations; return its objects as they are stated, normalised objects, and codes of faults."""

    def run(*annotations: dict, image: dict | None = None, **category):
        write_image(tmp_path / "images" / "a.png", WIDTH, HEIGHT)
        entries = [{"id": index, "image_id": 1, "category_id": 1} | entry for index, entry in enumerate(annotations)]
        images = [{"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT} | (image or {})]
        content = {"images": images, "annotations": entries, "categories": [{"id": 1, "name": "cat", **category}]}
        (tmp_path / "coco.json").write_text(json.dumps(content))
        read = read_coco(ImageFolder(str(tmp_path / "images")), str(tmp_path / "coco.json"))
        objects, faults = normalize_objects(read.images[0], HEADER, keypoint_flags(read).tolist())
        return objects, [fault.code for fault in (*read.faults, *faults)]

    return run


def runs(compressed: bool) -> dict:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[10:20, 5:9] = mask[30:31, 60:64] = 1
    flat = mask.reshape(-1, order="F")
    counts = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": coco_mask.encode(mask)["counts"].decode() if compressed else counts}


@pytest.mark.parametrize("bbox", [..., None, [], [0, 0, 0, 0], [0.0, 0.0, 0.0, 0.0]], ids=str)
@pytest.mark.parametrize(
    ("segmentation", "expected"),
    [
        ([SQUARE], [5, 5, 25, 25]),
        ([TRIANGLE, [40, 30, 50.5, 30, 45, 40]], [5, 5, 50.5, 40]),
        (SQUARE, [5, 5, 25, 25]),
        ([[5, 5], [25, 5], [25, 25], [5, 25]], [5, 5, 25, 25]),
        ([[[5, 5], [25, 5], [25, 25], [5, 25]]], [5, 5, 25, 25]),
        ([SQUARE, [60, 40, 61, 41]], [5, 5, 25, 25]),
        (runs(compressed=False), [5, 10, 64, 31]),
        (runs(compressed=True), [5, 10, 64, 31]),
    ],
    ids=["polygon", "polygons", "without outer list", "points", "list of points", "with a bad piece", "runs", "compressed runs"],
)
def test_an_object_without_box_has_the_box_of_its_mask(read, bbox, segmentation, expected):
    entry = {"segmentation": segmentation} | ({} if bbox is ... else {"bbox": bbox})
    objects, codes = read(entry)
    assert objects.boxes_xyxy.tolist() == [expected]
    assert [code for code in codes if code != "bad_polygon"] == []


def test_the_mask_of_an_object_without_box_stays_its_mask(read):
    objects, codes = read({"segmentation": [SQUARE], "area": 400}, {"segmentation": runs(compressed=True), "iscrowd": 1})
    assert [rle.mask_area(mask, WIDTH, HEIGHT) for mask in objects.masks] == [400, 44]
    assert objects.crowd.tolist() == [False, True]
    assert codes == []


@pytest.mark.parametrize(
    "bbox", [[5, 5, 0, 20], [5, 5, 20, -1], [5, 5, 20], [5, 5, "20", 20], [5, 5, float("nan"), 20], "5 5 20 20", {"x": 5}]
)
def test_a_broken_box_beside_a_mask_is_replaced_with_a_fault(read, bbox):
    objects, codes = read({"bbox": bbox, "segmentation": [SQUARE]})
    assert objects.boxes_xyxy.tolist() == [[5, 5, 25, 25]]
    assert codes == ["box_from_mask"]


@pytest.mark.parametrize(
    ("segmentation", "code"),
    [
        (None, "missing_box"),
        ([], "missing_box"),
        ([[]], "missing_box"),
        ([[[]]], "missing_box"),
        ([[5, 5, 25, 25]], "missing_box"),
        ([[5, 5, 15, 15, 25, 25]], "missing_box"),
        ([[5, 5, 25, 5, 25, float("nan")]], "missing_box"),
        ([[5, 5, 25, 5, 25]], "missing_box"),
        ({"size": [HEIGHT, WIDTH], "counts": [WIDTH * HEIGHT]}, "missing_box"),
        ({"size": [HEIGHT, WIDTH], "counts": "zz"}, "missing_box"),
        ({"size": [2 * HEIGHT, 2 * WIDTH], "counts": [100, 50, 4 * WIDTH * HEIGHT - 150]}, "missing_box"),
        ({"size": "x", "counts": []}, "missing_box"),
        ({}, "missing_box"),
        ("mask.png", "missing_box"),
    ],
    ids=str,
)
def test_an_object_without_box_and_without_usable_mask_is_reported(read, segmentation, code):
    objects, codes = read({"segmentation": segmentation})
    assert (len(objects.labels), codes) == (0, [code])


def test_keypoints_alone_are_no_box(read):
    objects, codes = read({"keypoints": [5, 5, 2, 25, 25, 2]}, keypoints=["nose", "tail"])
    assert (len(objects.labels), codes) == (0, ["missing_box"])


def test_runs_on_an_image_without_claimed_size_give_the_box(read):
    objects, codes = read({"segmentation": runs(compressed=False)}, image={"width": None})
    assert (objects.boxes_xyxy.tolist(), codes) == ([[5, 10, 64, 31]], [])


@pytest.mark.parametrize("size", [[10, 10], [WIDTH, HEIGHT], [2 * HEIGHT, 2 * WIDTH]])
def test_the_box_of_runs_of_another_size_is_no_box_of_the_image(read, size):
    pixels = size[0] * size[1]
    objects, codes = read({"segmentation": {"size": size, "counts": [50, 40, pixels - 90]}}, image={"width": None})
    assert (objects, codes) == (None, ["size_mismatch"])


@pytest.mark.parametrize("visibility", [3, -1, 0.5])
def test_a_visibility_that_coco_does_not_define_is_reported(read, visibility):
    objects, codes = read({"bbox": [5, 5, 20, 20], "keypoints": [9, 9, visibility]}, keypoints=["nose"])
    assert (objects.keypoints.tolist(), codes) == ([[[0, 0, 0]]], ["bad_keypoints"])


def test_runs_of_a_huge_size_cost_nothing():
    assert segmentation_bounds({"size": [10**9, 10**9], "counts": [10**18]}, None) is None


NO_POLYGONS = [[7, 7, 8, 8], [], [7], [7, 7, 8, 8, 9], [7, 7, 12, 12, 9, 9], [7, 7, 7, 7, 7, 7]]
NO_POLYGONS += [[7, 7, 9, 7, float("nan"), 9], [7, 7, 9, 7, 1e9, 9], [[]], None, "x", 5]


@pytest.mark.parametrize("piece", NO_POLYGONS, ids=str)
@pytest.mark.parametrize("order", [1, -1])
def test_a_bad_piece_alone_is_left_out_of_a_mask_with_a_fault(read, piece, order):
    objects, codes = read({"bbox": [5, 5, 20, 20], "segmentation": [TRIANGLE, piece][::order]})
    expected = rle.encode_polygons([TRIANGLE], WIDTH, HEIGHT)
    assert objects.masks == (expected,)
    assert rle.mask_area(expected, WIDTH, HEIGHT) == pytest.approx(200, abs=12)
    assert codes == ["bad_polygon"]


def test_a_thin_polygon_and_a_crossed_one_are_polygons():
    crossed = encode_segmentation([[5, 5, 25, 25, 25, 5, 5, 25]], WIDTH, HEIGHT)
    assert (150 < rle.mask_area(crossed.counts, WIDTH, HEIGHT) < 260, crossed.left_out) == (True, ())
    thin = encode_segmentation([[5, 5, 60, 5, 60, 6, 5, 6]], WIDTH, HEIGHT)
    assert (rle.mask_area(thin.counts, WIDTH, HEIGHT), thin.left_out) == (55, ())


def test_a_mask_without_a_usable_piece_is_unknown(read):
    bad = [[7, 7, 8, 8], [1, 1, 2, 2, 3, 3]]
    objects, codes = read({"bbox": [5, 5, 20, 20], "segmentation": bad}, {"bbox": [30, 5, 20, 20], "segmentation": [TRIANGLE]})
    assert objects.masks[0] is None and objects.masks[1] is not None
    assert codes == ["bad_mask"]


@pytest.mark.parametrize(
    "segmentation", [[[70, 50, 80, 50, 75, 60]], {"size": [HEIGHT, WIDTH], "counts": [WIDTH * HEIGHT]}], ids=["beside", "runs"]
)
def test_a_mask_without_a_pixel_on_the_image_is_refused(segmentation):
    with pytest.raises(MaskError, match="without a pixel"):
        encode_segmentation(segmentation, WIDTH, HEIGHT)


@pytest.mark.parametrize("area", [..., None, "400", float("nan"), -4, 1e12, 0, True, [400], 1e400], ids=str)
def test_an_area_that_is_no_plausible_number_is_that_of_the_box(read, area):
    objects, codes = read({"bbox": [5, 5, 20, 20]} | ({} if area is ... else {"area": area}))
    assert (objects.areas.tolist(), codes) == ([400], [])

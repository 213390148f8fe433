"""Rows of YOLO text files that are longer than a box: polygons, oriented boxes and poses."""

import json

import numpy as np
import pytest

from packed import all_records
from yolor_ray.config import PackYoloConfig
from yolor_ray.data.augment.keypoint_flip import flipped_keypoint_order
from yolor_ray.data.rle import decode_mask, mask_area
from yolor_ray.data.shards.dataset import open_dataset
from yolor_ray.errors import DataError
from yolor_ray.pack.annotations.yolo.layout import find_layout
from yolor_ray.pack.annotations.yolo.rows import Row
from yolor_ray.pack.run import pack

BOX = "0 0.5 0.5 0.25 0.25"
SQUARE = "1 0.1 0.1 0.4 0.1 0.4 0.4 0.1 0.4"


@pytest.fixture
def pack_rows(tmp_path, write_image):
    """Pack images of 64x48 px with the texts of their label files; return faults by code, and the records by name."""

    def run(*texts: str, names: str = "cat\ndog\n"):
        for number, text in enumerate(texts):
            write_image(tmp_path / "images" / f"{number}.png", seed=number)
            (tmp_path / "labels").mkdir(exist_ok=True)
            (tmp_path / "labels" / f"{number}.txt").write_text(text)
        names_file = tmp_path / ("data.yaml" if "names:" in names else "names.txt")
        names_file.write_text(names)
        sources = {"images": str(tmp_path / "images"), "annotations": str(tmp_path / "labels"), "names": str(names_file)}
        result = pack(PackYoloConfig(**sources, output=str(tmp_path / "out")))
        return result["faults"], {record.name: record for record in all_records(str(tmp_path / "out"))}

    return run


def boxes(record) -> list:
    return record.objects.boxes_xyxy.round(3).tolist()


def test_a_polygon_becomes_its_enclosing_box_and_its_mask(pack_rows):
    faults, records = pack_rows(SQUARE)
    record = records["0.png"]
    assert (faults, record.tasks) == ({}, ("detect", "segment"))
    assert record.objects.labels.tolist() == [1]
    assert np.allclose(record.objects.boxes_xyxy, [[6.4, 4.8, 25.6, 19.2]])
    mask = decode_mask(record.objects.masks[0], 64, 48)
    assert mask[5:19, 7:25].all() and not mask[:4].any() and not mask[:, 27:].any()


def test_boxes_among_polygons_keep_both_and_leave_the_masks_of_their_image_unknown(pack_rows, caplog):
    triangle = "0 0.5 0.5 1 0.5 0.5 1"
    faults, records = pack_rows(f"{BOX}\n{SQUARE}\n{triangle}\n", BOX, "", f"{SQUARE}\n{triangle}")
    assert faults == {}
    assert [records[f"{number}.png"].tasks for number in range(4)] == [
        ("detect",),
        ("detect",),
        ("detect", "segment"),
        ("detect", "segment"),
    ]
    assert boxes(records["0.png"])[0] == [24, 18, 40, 30]
    assert boxes(records["0.png"])[2] == [32, 24, 64, 48]
    assert records["0.png"].objects.masks is None
    assert mask_area(records["3.png"].objects.masks[1], 64, 48) == pytest.approx(32 * 24 / 2, rel=0.1)
    assert "event=partial_masks images=1 example='0.png'" in caplog.text


def test_a_polygon_partly_outside_is_clipped_before_its_box_is_taken(pack_rows):
    faults, records = pack_rows("0 0.5 0.5 1.5 0.5 1.5 1", "0 -0.005 0.5 1.005 0.5 0.5 1", "0 1.2 0.1 1.5 0.1 1.5 0.4\n" + SQUARE)
    assert faults == {"box_clipped": 1, "box_outside_image": 1}
    assert np.allclose(records["0.png"].objects.boxes_xyxy, [[32, 24, 64, 36]])
    assert np.allclose(records["1.png"].objects.boxes_xyxy, [[0, 24, 64, 48]])
    assert len(records["2.png"].objects.labels) == 1


@pytest.mark.parametrize(
    ("line", "code", "kept"),
    [
        ("0 0.1 0.1 0.1 0.1 0.1 0.1", "zero_area_box", 0),
        ("0 0.1 0.1 0.1 0.2 0.1 0.3", "zero_area_box", 0),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4 0.4", "bad_mask", 1),
    ],
)
def test_a_degenerate_polygon_is_a_fault(pack_rows, line, code, kept):
    faults, records = pack_rows(line, SQUARE)
    assert faults == {code: 1}
    assert records["0.png"].tasks == (("detect",) if kept else ("detect", "segment"))
    assert len(records["0.png"].objects.labels) == kept


def test_sides_that_cross_are_no_degenerate_polygon(pack_rows):
    faults, records = pack_rows("0 0.1 0.1 0.9 0.9 0.9 0.1 0.1 0.9")
    assert faults == {}
    assert mask_area(records["0.png"].objects.masks[0], 64, 48) > 600


def test_a_polygon_in_pixels_is_left_out_with_its_image(pack_rows):
    faults, records = pack_rows("0 5 5 25 5 25 25", SQUARE)
    assert faults == {"not_fully_annotated": 1, "not_normalised": 1}
    assert list(records) == ["1.png"]


def turned_rectangles(count: int) -> list[str]:
    rng = np.random.default_rng(1)
    lines = []
    for _ in range(count):
        angle, (x, y), (a, b) = rng.uniform(0.2, 1.3), rng.uniform(20, 28, 2), rng.uniform(4, 14, 2)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        corners = (np.array([[-a, -b], [a, -b], [a, b], [-a, b]]) @ turn.T + (x, y)) / (64, 48)
        lines.append("0 " + " ".join(f"{number:.6f}" for number in corners.clip(0, 1).reshape(-1)))
    return lines


def test_oriented_boxes_become_their_enclosing_boxes_and_one_fault_says_so(pack_rows, tmp_path):
    lines = turned_rectangles(4)
    faults, records = pack_rows("\n".join(lines[:2]), "\n".join(lines[2:]))
    assert faults == {"oriented_box": 1}
    assert [record.tasks for record in records.values()] == [("detect",)] * 2
    corners = np.array(lines[0].split()[1:], float).reshape(4, 2) * (64, 48)
    assert np.allclose(records["0.png"].objects.boxes_xyxy[0], [*corners.min(axis=0), *corners.max(axis=0)], atol=1e-3)
    (fault,) = map(json.loads, (tmp_path / "out" / "faults.jsonl").read_text().splitlines())
    assert "found 4 oriented boxes in the dataset" in fault["message"]


def test_turned_rectangles_among_upright_boxes_are_polygons(pack_rows):
    faults, records = pack_rows("\n".join(turned_rectangles(2)), BOX)
    assert (faults, records["0.png"].tasks) == ({}, ("detect", "segment"))


@pytest.mark.parametrize(
    "keypoints",
    ["0.5 0.5 2", "0.45 0.45 2 0.55 0.5 1", "0.45 0.45 2 0 0 0 0.55 0.55 1", "0.5 0.5", "0.45 0.45 0.55 0.55", "0.4 0.6 0 0 0.55 0.5"],
)
def test_a_pose_without_kpt_shape_is_its_box_and_one_fault_says_so(pack_rows, keypoints):
    faults, records = pack_rows(f"{BOX} {keypoints}", f"{BOX} {keypoints}", BOX)
    assert faults == {"missing_kpt_shape": 1}
    assert all(boxes(record) == [[24, 18, 40, 30]] and record.tasks == ("detect",) for record in records.values())


def test_real_polygons_and_poses_are_told_apart(shared):
    flies = json.loads((shared / "datasets/flies_jde/val.json").read_text())
    sizes = {image["id"]: (image["width"], image["height"]) for image in flies["images"]}
    for dims in (2, 3):
        rows = []
        for entry in flies["annotations"]:
            points = np.array(entry["keypoints"], float).reshape(-1, 3)[:, :dims] / [*sizes[entry["image_id"]], 1][:dims]
            x, y, width, height = np.array(entry["bbox"]) / np.tile(sizes[entry["image_id"]], 2)
            rows.append(Row(1, 0, (x + width / 2, y + height / 2, width, height, *points.reshape(-1))))
        assert find_layout(rows) == ("pose", 4 + 13 * dims, dims)
    coco = json.loads((shared / "datasets/coco_eval_check/instances_val2014_100.json").read_text())
    sizes = {image["id"]: (image["width"], image["height"]) for image in coco["images"]}
    outlines = [
        np.array(polygon).reshape(-1, 2) / sizes[entry["image_id"]]
        for entry in coco["annotations"]
        if isinstance(entry["segmentation"], list)
        for polygon in entry["segmentation"]
    ]
    assert find_layout([Row(1, 0, tuple(outline.reshape(-1))) for outline in outlines]).kind == "polygon"
    for corners in (3, 4, 5, 7, 10):
        picked = [outline[np.arange(corners) * len(outline) // corners] for outline in outlines if len(outline) >= corners]
        assert find_layout([Row(1, 0, tuple(points.reshape(-1))) for points in picked]).kind == "polygon"


def test_keypoints_of_three_numbers_are_read_where_kpt_shape_declares_them(pack_rows, tmp_path):
    names = "names: [cat]\nkpt_shape: [2, 3]\nkpt_names: {0: [left_eye, right_eye]}\nflip_idx: [1, 0]\n"
    faults, records = pack_rows(f"{BOX} 0.25 0.5 2 0.75 0.5 1.0", f"{BOX} 0.25 0.5 2 9 9 0", BOX, names=names)
    assert faults == {}
    assert open_dataset(str(tmp_path / "out")).keypoint_names == ("left_eye", "right_eye")
    assert records["0.png"].objects.keypoints.tolist() == [[[16, 24, 2], [48, 24, 1]]]
    assert records["1.png"].objects.keypoints.tolist() == [[[16, 24, 2], [0, 0, 0]]]
    assert [record.tasks for _, record in sorted(records.items())] == [("detect", "pose")] * 2 + [("detect",)]


def test_keypoints_of_two_numbers_are_visible_unless_at_zero_or_negative(pack_rows, tmp_path):
    faults, records = pack_rows(f"{BOX} 0.25 0.5 0 0 -1 -1 0.75 0", names="names: [cat]\nkpt_shape: [4, 2]\n")
    assert (faults, records["0.png"].tasks) == ({}, ("detect", "pose"))
    assert open_dataset(str(tmp_path / "out")).keypoint_names == tuple(f"keypoint_{index}" for index in range(4))
    assert records["0.png"].objects.keypoints.tolist() == [[[16, 24, 2], [0, 0, 0], [0, 0, 0], [48, 0, 2]]]


@pytest.mark.parametrize(
    ("columns", "faults", "tasks"),
    [
        ("0.5 0.5 0.9", {"bad_keypoints": 1}, ("detect", "pose")),
        ("32 24 2", {"bad_keypoints": 1}, ("detect", "pose")),
        ("0.5 0.5", {"bad_line": 1, "not_fully_annotated": 1}, None),
        ("0.5 nan 2", {"not_a_number": 1, "not_fully_annotated": 1}, None),
    ],
)
def test_unreadable_keypoints_are_unlabelled_and_unreadable_lines_exclude_the_image(pack_rows, columns, faults, tasks):
    good = f"{BOX} 0.5 0.5 2"
    found, records = pack_rows(f"{good}\n0 0.4 0.4 0.2 0.2 {columns}", good, names="names: [cat]\nkpt_shape: [1, 3]\n")
    assert found == faults
    assert (records["0.png"].tasks if "0.png" in records else None) == tasks


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("flip_idx: [0, 2, 1]", ("keypoint_0", "keypoint_1_left", "keypoint_1_right")),
        ("flip_idx: [0, 1, 2]", ("keypoint_0", "keypoint_1", "keypoint_2")),
        ("kpt_names: [nose, eyeL, eyeR]\nflip_idx: [0, 2, 1]", ("nose", "eyeL", "eyeR")),
        ("kpt_names: [nose, eyeL, eyeR]\nflip_idx: [0, 1, 2]", ("nose", "keypoint_1", "keypoint_2")),
        ("kpt_names: [nose, a, b]\nflip_idx: [0, 2, 1]", ("nose", "keypoint_1_left", "keypoint_1_right")),
        ("kpt_names: [left_eye, right_eye, tail]\nflip_idx: [2, 1, 0]", ("keypoint_0_left", "keypoint_1", "keypoint_0_right")),
    ],
)
def test_a_left_right_flip_follows_flip_idx(pack_rows, tmp_path, spec, names):
    pack_rows(f"{BOX} 0.5 0.5 0.5 0.5 0.5 0.5", names=f"names: [cat]\nkpt_shape: [3, 2]\n{spec}\n")
    stored = open_dataset(str(tmp_path / "out")).keypoint_names
    assert stored == names
    if "flip_idx" in spec:
        assert flipped_keypoint_order(stored).tolist() == json.loads(spec.rsplit("flip_idx: ")[-1])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("kpt_shape: [3]", r"kpt_shape: \[3\], expected \[number of keypoints, 2 or 3\]"),
        ("kpt_shape: [0, 3]", "kpt_shape"),
        ("kpt_shape: [3, 4]", "kpt_shape"),
        ("kpt_shape: seventeen", "'seventeen' as kpt_shape, expected a list"),
        ("kpt_shape: [2, 2]\nflip_idx: [0]", r"flip_idx: \[0\], expected each of 0 to 1 once"),
        ("kpt_shape: [3, 2]\nflip_idx: [1, 2, 0]", "flip_idx: .* in pairs that name each other"),
        ("kpt_shape: [2, 2]\nkpt_names: [a]", "kpt_names: .*expected 2 different names as kpt_shape says"),
        ("kpt_shape: [1, 2]\nkpt_names: {0: [a], 1: [b]}", "2 different lists as kpt_names"),
    ],
)
def test_malformed_keypoint_keys_are_refused(pack_rows, spec, message):
    with pytest.raises(DataError, match=rf"data\.yaml: found .*{message}"):
        pack_rows(BOX, names=f"names: [cat]\n{spec}\n")

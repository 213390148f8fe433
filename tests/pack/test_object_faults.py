"""Faults that show only among several objects, and the counts that a pack reports: equal boxes, fractions, crowds, areas, limits."""

import json
from pathlib import Path

import pytest

from packed import all_records
from yolor_ray.config import PackCocoConfig, PackVocConfig, PackYoloConfig
from yolor_ray.data.rle import mask_area
from yolor_ray.data.shards.dataset import open_dataset
from yolor_ray.data.shards.records import Objects
from yolor_ray.data.shards.union import open_datasets
from yolor_ray.errors import DataError
from yolor_ray.pack.run import pack

POSE = [5, 6, 2, 7, 8, 1]
HALF_POSE = [5, 6, 2, 0, 0, 0]


@pytest.fixture
def pack_coco(tmp_path, write_image):
    """Pack images 0.png, 1.png and 2.png with COCO annotations; return the result and the objects by name."""

    def run(*annotations: dict, name: str = "out") -> tuple[dict, dict[str, Objects]]:
        for seed in range(3):
            write_image(tmp_path / "images" / f"{seed}.png", seed=seed)
        entries = [
            {"id": index, "image_id": 0, "category_id": 1, "bbox": [4, 4, 20, 20], **entry} for index, entry in enumerate(annotations, 1)
        ]
        images = [{"id": number, "file_name": f"{number}.png", "width": 64, "height": 48} for number in range(3)]
        categories = [{"id": 1, "name": "cat", "keypoints": ["nose", "tail"]}, {"id": 2, "name": "dog"}]
        (tmp_path / "coco.json").write_text(json.dumps({"images": images, "annotations": entries, "categories": categories}))
        sources = {"images": str(tmp_path / "images"), "annotations": str(tmp_path / "coco.json")}
        result = pack(PackCocoConfig(**sources, output=str(tmp_path / name)))
        return result, {record.name: record.objects for record in all_records(str(tmp_path / name))}

    return run


def test_equal_boxes_of_one_class_become_one_object(pack_coco):
    result, objects = pack_coco({}, {"bbox": [4.0, 4.0, 20.0, 20.0]}, {})
    assert (result["boxes"], result["faults"]) == (1, {"duplicate_box": 2})
    assert objects["0.png"].boxes_xyxy.tolist() == [[4, 4, 24, 24]]


@pytest.mark.parametrize(
    "difference", [{"category_id": 2}, {"image_id": 1}, {"iscrowd": 1}, {"bbox": [4, 4, 20, 20.001]}], ids=lambda d: next(iter(d))
)
def test_boxes_that_differ_in_anything_are_two_objects(pack_coco, difference):
    result, _ = pack_coco({}, difference)
    assert (result["boxes"], result["faults"]) == (2, {})


@pytest.mark.parametrize("order", [1, -1])
def test_the_object_that_stays_has_mask_keypoints_and_identity_of_all(pack_coco, order):
    masked = {"segmentation": [[4, 4, 24, 4, 24, 24]], "area": 200}
    posed, half_posed, named = {"keypoints": POSE}, {"keypoints": HALF_POSE}, {"identity": 3}
    result, objects = pack_coco(*[masked, {}, half_posed, posed, named][::order])
    assert (result["boxes"], result["faults"]) == (1, {"duplicate_box": 4})
    kept = objects["0.png"]
    assert kept.keypoints.reshape(-1).tolist() == POSE
    assert kept.identities.tolist() == [3]
    assert kept.areas.tolist() == [200]
    assert 180 < mask_area(kept.masks[0], 64, 48) < 220


def test_two_known_individuals_in_one_box_stay_two_objects(pack_coco):
    result, objects = pack_coco({"identity": 3}, {"identity": 4}, {"identity": 4})
    assert result["faults"] == {"duplicate_box": 1}
    assert objects["0.png"].identities.tolist() == [3, 4]


def test_equal_boxes_in_voc_files_become_one_object(tmp_path, write_image):
    write_image(tmp_path / "images" / "a.png")
    box = "<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>24</xmax><ymax>24</ymax></bndbox>"
    text = "".join(f"<object><name>{name}</name>{box}</object>\n" for name in ("cat", "cat", "dog"))
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml" / "a.xml").write_text(f"<annotation><filename>a.png</filename>\n{text}</annotation>")
    result = pack(PackVocConfig(images=str(tmp_path / "images"), annotations=str(tmp_path / "xml"), output=str(tmp_path / "out")))
    assert (result["boxes"], result["faults"]) == (2, {"duplicate_box": 1})
    (fault,) = map(json.loads, (tmp_path / "out" / "faults.jsonl").read_text().splitlines())
    assert (fault["line"], "the first is at" in fault["message"], "a.xml:2" in fault["message"]) == (3, True, True)


def test_equal_rows_in_yolo_files_become_one_object(yolo_set, tmp_path):
    sources = yolo_set(2, n0="0 0.5 0.5 0.5 0.5\n0 0.50 0.5 0.5 .5\n1 0.5 0.5 0.5 0.5\n", n1="0 0.5 0.5 0.5 0.5\n")
    result = pack(PackYoloConfig(**sources, output=str(tmp_path / "out")))
    assert (result["boxes"], result["faults"]) == (3, {"duplicate_box": 1})


@pytest.mark.parametrize("area", [..., None, 0, -4, float("nan"), "400", 3, 1e6])
def test_an_implausible_area_is_replaced_by_that_of_the_box(pack_coco, area):
    entry = {} if area is ... else {"area": area}
    result, objects = pack_coco({"bbox": [4, 4, 40, 40], **entry}, {"image_id": 1, "bbox": [0, 0, 9, 9], "area": 40})
    assert objects["0.png"].areas.tolist() == [1600]
    assert objects["1.png"].areas.tolist() == [40]
    assert result["faults"] == {}


@pytest.mark.parametrize("area", [..., 0, 3, 1600, 1e6], ids=["absent", "zero", "tiny", "of the box", "huge"])
def test_an_implausible_area_is_replaced_by_that_of_the_mask(pack_coco, area):
    thin = [[4, 4, 14, 4, 14, 44, 4, 44]]
    entry = {} if area is ... else {"area": area}
    _, objects = pack_coco({"bbox": [4, 4, 40, 40], "segmentation": thin, **entry})
    assert objects["0.png"].areas.tolist() == [400]


def test_boxes_in_fractions_are_a_fault_and_their_images_are_no_background(pack_coco):
    inside, whole = {"bbox": [0.1, 0.2, 0.5, 0.25]}, {"image_id": 1, "bbox": [0, 0, 1, 1]}
    with pytest.raises(DataError, match=r"found 1 images and no usable object, .*looks_like_fractions 2; for example"):
        pack_coco(inside, {**inside, "category_id": 2}, whole)


def test_a_file_of_fractions_alone_is_refused_with_an_example(pack_coco):
    boxes = [{"image_id": number, "bbox": [0.1, 0.2, 0.5, 0.25]} for number in range(3)]
    with pytest.raises(DataError, match=r"looks_like_fractions: .*found box 0\.1, 0\.2, 0\.6, 0\.45, and all 3 boxes .*expected pixels"):
        pack_coco(*boxes)


def test_a_box_of_one_pixel_among_boxes_in_pixels_is_an_object(pack_coco):
    result, objects = pack_coco({"bbox": [0, 0, 1, 1]}, {"image_id": 1})
    assert (result["boxes"], result["faults"], len(objects)) == (2, {}, 3)


def test_fractions_in_voc_files_are_a_fault(tmp_path, write_image):
    write_image(tmp_path / "images" / "a.png")
    box = "<bndbox><xmin>0.1</xmin><ymin>0.2</ymin><xmax>0.5</xmax><ymax>0.9</ymax></bndbox>"
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml" / "a.xml").write_text(f"<annotation><filename>a.png</filename><object><name>cat</name>{box}</object></annotation>")
    with pytest.raises(DataError, match="looks_like_fractions"):
        pack(PackVocConfig(images=str(tmp_path / "images"), annotations=str(tmp_path / "xml"), output=str(tmp_path / "out")))


def test_crowd_regions_are_counted_in_manifest_log_and_result(pack_coco, caplog, tmp_path: Path):
    with caplog.at_level("INFO"):
        result, _ = pack_coco({"iscrowd": 1}, {"image_id": 1, "iscrowd": 1}, {"image_id": 2})
    assert (result["boxes"], result["crowds"]) == (3, 2)
    assert open_dataset(result["output"]).crowds == json.loads((tmp_path / "out" / "dataset.json").read_text())["crowds"] == 2
    assert "event=packed images=3 boxes=3 crowds=2" in caplog.text
    assert "event=only_crowds" not in caplog.text
    other, _ = pack_coco({"iscrowd": 1}, name="other")
    assert "event=only_crowds boxes=1" in caplog.text
    assert open_datasets(f"{result['output']},{other['output']}").crowds == 3


def test_the_crowds_of_a_manifest_before_the_count_are_unknown(pack_coco, tmp_path: Path):
    result, _ = pack_coco({"iscrowd": 1})
    manifest = tmp_path / "out" / "dataset.json"
    content = json.loads(manifest.read_text())
    del content["crowds"], content["sha256"]
    manifest.write_text(json.dumps(content))
    assert open_dataset(result["output"]).crowds is None


@pytest.mark.parametrize(("extra", "warning"), [({}, "task=detect images=1 limit=100"), ({"category_id": 2}, ""), ({"iscrowd": 1}, "")])
def test_images_with_over_100_objects_of_a_class_are_warned_of(pack_coco, caplog, extra, warning):
    boxes = [{"bbox": [index % 50, index // 50, 9, 9]} for index in range(100)]
    pack_coco(*boxes, {"bbox": [20, 30, 9, 9], **extra})
    assert ("event=detection_limit" in caplog.text, warning in caplog.text) == (bool(warning), True)


def test_images_with_over_20_poses_are_warned_of(pack_coco, caplog):
    pack_coco(*[{"bbox": [index, 4, 20, 20], "keypoints": POSE} for index in range(21)])
    assert "event=detection_limit task=pose images=1 limit=20" in caplog.text
    assert "task=detect" not in caplog.text


def listed_boxes(url: str) -> dict[str, list[float] | None]:
    """Return the box of each fault of a dataset by code."""
    lines = (Path(url) / "faults.jsonl").read_text().splitlines()
    return {fault["code"]: fault["box"] for fault in map(json.loads, lines)}


def test_faults_list_the_box_as_annotated_and_none_where_there_is_none_to_read(pack_coco, tmp_path):
    unusable = {"bbox": [7, 8, 0, 0]}, {"bbox": [1, 2, 3, 4], "category_id": 9}, {"bbox": [1, 2, "x", 4]}, {"bbox": None}
    result, _ = pack_coco({}, *({"image_id": 1, **entry} for entry in unusable))
    boxes = {"zero_area_box": [7, 8, 7, 8], "unknown_class": [1, 2, 4, 6], "not_a_number": None, "missing_box": None}
    assert listed_boxes(result["output"]).items() >= boxes.items()
    (tmp_path / "labels").mkdir()
    for stem, text in {"0": "0 0.5 0.5 0.2 0.2", "1": "0 0.5 0.25 0 0", "2": "0 0.1 0.1 0.9 0.1 0.5"}.items():
        (tmp_path / "labels" / f"{stem}.txt").write_text(text)
    (tmp_path / "names.txt").write_text("cat")
    sources = {"images": str(tmp_path / "images"), "annotations": str(tmp_path / "labels"), "names": str(tmp_path / "names.txt")}
    pack(PackYoloConfig(**sources, output=str(tmp_path / "yolo")))
    assert listed_boxes(str(tmp_path / "yolo")).items() >= {"zero_area_box": [0.5, 0.25, 0.5, 0.25], "bad_line": None}.items()
    corners = {"0": (1, 1, 20, 20), "1": (30, 9, 30, 9), "2": ("x", 9, 30, 9)}
    (tmp_path / "voc").mkdir()
    for stem, edges in corners.items():
        tags = "".join(f"<{tag}>{edge}</{tag}>" for tag, edge in zip(("xmin", "ymin", "xmax", "ymax"), edges, strict=True))
        xml = f"<annotation><object><name>cat</name><bndbox>{tags}</bndbox></object></annotation>"
        (tmp_path / "voc" / f"{stem}.xml").write_text(xml)
    pack(PackVocConfig(images=str(tmp_path / "images"), annotations=str(tmp_path / "voc"), output=str(tmp_path / "out-voc")))
    assert listed_boxes(str(tmp_path / "out-voc")).items() >= {"zero_area_box": [30, 9, 30, 9], "not_a_number": None}.items()

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from yolor_ray.data.images.header import ImageHeader
from yolor_ray.errors import DataError
from yolor_ray.pack.annotations.coco import read_coco
from yolor_ray.pack.annotations.image_folder import ImageFolder
from yolor_ray.pack.annotations.masks import MaskError, encode_segmentation, orient_mask
from yolor_ray.pack.annotations.normalize import normalize_objects
from yolor_ray.pack.annotations.schema import add_labels_of_objects

WIDTH, HEIGHT = 64, 48
HEADER = ImageHeader("PNG", WIDTH, HEIGHT, 1)
CATEGORIES = [{"id": 90, "name": "dog"}, {"id": 3, "name": "cat"}]
TRIANGLE = [[10, 10, 30, 10, 10, 30]]


def annotation(number: int = 1, **changes) -> dict:
    plain = {"id": number, "image_id": 7, "category_id": 3, "bbox": [10, 5, 20, 30]}
    return {key: value for key, value in {**plain, **changes}.items() if value is not ...}


def image(number: object = 7, name: str = "a.png", **changes) -> dict:
    return {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT, **changes}


@pytest.fixture
def read(tmp_path, write_image):
    """Write images a.png, b.png and c.png and a COCO file; return the annotations that are read from the file."""

    def run(annotations: list, images: list | None = None, categories: list | None = None, **options):
        for seed, name in enumerate(("a.png", "b.png", "c.png")):
            write_image(tmp_path / "images" / name, WIDTH, HEIGHT, seed)
        content = {"images": [image()] if images is None else images, "annotations": annotations, "categories": categories or CATEGORIES}
        (tmp_path / "coco.json").write_text(json.dumps(content))
        return read_coco(ImageFolder(str(tmp_path / "images")), str(tmp_path / "coco.json"), **options)

    return run


def fault_locations(annotations) -> list[tuple[str, str]]:
    return [(fault.code, fault.pointer) for fault in annotations.faults]


def test_labels_follow_the_order_of_category_ids(read):
    annotations = read([annotation(1), annotation(2, category_id=90)])
    assert annotations.classes == ("cat", "dog")
    assert [obj.label for obj in annotations.images[0].objects] == [0, 1]
    assert annotations.images[0].objects[0].box == (10, 5, 30, 35)


def test_category_id_zero_is_valid(read):
    annotations = read([annotation(category_id=0)], categories=[{"id": 0, "name": "ant"}, *CATEGORIES])
    assert annotations.classes == ("ant", "cat", "dog")
    assert annotations.faults == ()


def test_an_image_without_annotations_is_a_background(read):
    annotations = read([annotation()], [image(), image(9, "b.png")])
    assert [len(item.objects) for item in annotations.images] == [1, 0]


def test_annotations_of_a_missing_image_are_left_out_and_reported_once(read):
    annotations = read([annotation(1, image_id=8), annotation(2, image_id=8), annotation(3)], [image(8, "gone.png"), image()])
    assert fault_locations(annotations) == [("missing_image", "/images/0")]
    assert [item.name for item in annotations.images] == ["a.png"]


def test_faults_are_located_by_json_pointer(read):
    entries = [
        annotation(1),
        annotation(2, image_id=99),
        annotation(3, category_id=4),
        annotation(4, bbox=[1, 2, 0, 5]),
        annotation(5, bbox=[1, 2, 3, -5]),
        annotation(6, bbox=[1, 2, 3]),
        annotation(7, bbox=...),
        annotation(8, bbox=[1, 2, float("nan"), 4]),
        annotation(9, bbox=[1, 2, "3", 4]),
        annotation(10, bbox=[1, 2, 10**400, 4]),
        17,
        annotation(11, image_id=[7]),
    ]
    annotations = read(entries)
    expected = ["unknown_image", "unknown_class", "zero_area_box", "missing_box", "missing_box", "missing_box"]
    expected += ["not_a_number"] * 3 + ["bad_annotation", "unknown_image"]
    assert fault_locations(annotations) == [(code, f"/annotations/{at}") for at, code in enumerate(expected, start=1)]
    assert len(annotations.images[0].objects) == 1
    assert "image 'a.png': found category_id 4, expected one of 3, 90" in annotations.faults[1].message


def test_a_broken_image_is_reported(read):
    annotations = read([annotation()], [image(), {"id": 5}, 3, image(None, "b.png")])
    assert sorted(fault_locations(annotations)) == [("bad_image", f"/images/{index}") for index in (1, 2, 3)]
    assert [item.name for item in annotations.images] == ["a.png"]


def test_missing_area_and_iscrowd_have_defaults(read):
    annotations = read([annotation(1), annotation(2, area=12.5, iscrowd=1), annotation(3, area=None, iscrowd=0), annotation(4, area=-1)])
    objects, faults = normalize_objects(annotations.images[0], HEADER)
    assert objects.areas.tolist() == [600, 12.5, 600, 600]
    assert objects.crowd.tolist() == [False, True, False, False]
    assert objects.masks is None
    assert faults == []


def test_polygons_become_the_run_lengths_of_pycocotools(read):
    annotations = read([annotation(segmentation=TRIANGLE)])
    objects, _ = normalize_objects(annotations.images[0], HEADER)
    expected = coco_mask.merge(coco_mask.frPyObjects(TRIANGLE, HEIGHT, WIDTH))
    assert objects.masks == (expected["counts"],)
    assert objects.areas.tolist() == [coco_mask.area(expected)]


def test_run_lengths_are_read_as_list_and_as_string():
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[10:20, 5:9] = mask[30:31, 60:64] = 1
    encoded = coco_mask.encode(mask)
    flat = mask.reshape(-1, order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    for run_lengths in (counts, encoded["counts"].decode()):
        assert encode_segmentation({"size": [HEIGHT, WIDTH], "counts": run_lengths}, WIDTH, HEIGHT) == (encoded["counts"], ())


def test_a_crowd_of_run_lengths_is_kept_as_crowd(read):
    counts = [100, 50, WIDTH * HEIGHT - 150]
    annotations = read([annotation(iscrowd=1, segmentation={"size": [HEIGHT, WIDTH], "counts": counts})])
    objects, faults = normalize_objects(annotations.images[0], HEADER)
    assert objects.crowd.tolist() == [True]
    assert objects.areas.tolist() == [50]
    assert faults == []


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 4]], "6 or more numbers"),
        ([[1, 2, 3, 4, 5, 6, 7]], "6 or more numbers"),
        ([[1, 2, 3, 4, 5, float("nan")]], "6 or more numbers"),
        ([[1, 2, 3, 4, 5, 1e9]], "found a polygon corner at 1000000000.0"),
        ([7], "6 or more numbers"),
        ({"size": [WIDTH, HEIGHT], "counts": [WIDTH * HEIGHT]}, r"expected \[height, width\] = \[48, 64\]"),
        ({"size": [HEIGHT, WIDTH], "counts": [5, 10]}, "over 15 pixels, expected 3072"),
        ({"size": [HEIGHT, WIDTH], "counts": [-5, WIDTH * HEIGHT + 5]}, "not whole numbers from 0"),
        ({"size": [HEIGHT, WIDTH], "counts": "zzzz"}, "found compressed run lengths with 'z'"),
        ({"size": [HEIGHT, WIDTH], "counts": "ooo"}, "end in the middle of a number"),
        ({"size": [HEIGHT, WIDTH], "counts": "ooooooo0"}, "a number of 8 characters or more, expected at most 7"),
        ({"size": [HEIGHT, WIDTH]}, "not whole numbers"),
        ("mask.png", "type str"),
    ],
)
def test_a_bad_mask_is_refused_before_pycocotools_sees_it(segmentation, message):
    with pytest.raises(MaskError, match=message):
        encode_segmentation(segmentation, WIDTH, HEIGHT)


def test_the_mask_of_an_object_without_usable_one_beside_others_is_unknown(read):
    annotations = read([annotation(1, segmentation=TRIANGLE), annotation(2), annotation(3, segmentation=[[1, 2]])])
    objects, faults = normalize_objects(annotations.images[0], HEADER)
    assert [(fault.code, fault.pointer) for fault in faults] == [("missing_mask", "/annotations/1"), ("bad_mask", "/annotations/2")]
    assert objects.masks[0] is not None and objects.masks[1:] == (None, None)
    assert objects.areas.tolist()[1:] == [600, 600]


def test_masks_turn_with_the_image():
    from yolor_ray.data.images.decode import _TO_UPRIGHT

    mask = np.asfortranarray(np.random.default_rng(0).integers(0, 2, (HEIGHT, WIDTH), np.uint8))
    counts = coco_mask.encode(mask)["counts"]
    for orientation in (5, 6, 7, 8):
        expected = _TO_UPRIGHT[orientation](mask[..., None])[..., 0]
        assert orient_mask(counts, WIDTH, HEIGHT, orientation) == coco_mask.encode(np.asfortranarray(expected))["counts"]


def test_keypoints_and_identities_default_to_unknown(read):
    categories = [{"id": 3, "name": "cat", "keypoints": ["nose", "tail"]}, {"id": 90, "name": "dog"}]
    points = [1, 2, 2, 0, 0, 0]
    annotations = read([annotation(1, keypoints=points, identity=5), annotation(2), annotation(3, keypoints=[1, 2])], categories=categories)
    assert annotations.keypoint_names == ("nose", "tail")
    assert fault_locations(annotations) == [("bad_keypoints", "/annotations/2/keypoints")]
    objects, _ = normalize_objects(annotations.images[0], HEADER, [[True, True], [False, False]], has_identities=annotations.has_identities)
    assert objects.keypoints.shape == (3, 2, 3)
    assert objects.keypoints[0].ravel().tolist() == points
    assert not objects.keypoints[1:].any()
    assert objects.identities.tolist() == [5, -1, -1]


def test_annotated_keypoints_turn_with_the_image_and_absent_ones_stay_zero(read):
    categories = [{"id": 3, "name": "cat", "keypoints": ["nose", "tail"]}]
    annotations = read([annotation(keypoints=[1, 2, 2, 0, 0, 0])], categories=categories)
    objects, _ = normalize_objects(annotations.images[0], ImageHeader("JPEG", HEIGHT, WIDTH, 6), [[True, True]])
    assert objects.keypoints[0].tolist() == [[46, 1, 2], [0, 0, 0]]


def test_image_labels_are_sorted_or_given(read):
    images = [image(labels=["wet"]), image(8, "b.png", labels=["dry", "wet"])]
    annotations = read([annotation()], images)
    assert annotations.image_classes == ("dry", "wet")
    assert [item.image_labels for item in annotations.images] == [(1,), (0, 1)]
    annotations = read([annotation()], images, image_classes=["wet"])
    assert [item.image_labels for item in annotations.images] == [(0,), (0,)]
    assert fault_locations(annotations) == [("unknown_class", "/images/1")]


def tasks(annotations) -> dict[str, str]:
    return {item.name: " ".join(item.tasks) for item in annotations.images}


def test_tasks_are_those_of_the_objects_and_of_a_background_those_of_the_file(read):
    images = [image(), image(8, "b.png")]
    assert tasks(read([annotation()], images)) == {"a.png": "detect", "b.png": "detect"}
    assert tasks(read([], images)) == {"a.png": "detect", "b.png": "detect"}
    assert tasks(read([annotation(segmentation=TRIANGLE)], images)) == {"a.png": "detect segment", "b.png": "detect segment"}
    both = [annotation(1, segmentation=TRIANGLE), annotation(2, image_id=8, identity=0)]
    assert tasks(read(both, images)) == {"a.png": "detect segment", "b.png": "detect embed"}


def test_an_image_is_annotated_for_pose_by_lists_of_keypoints_and_by_the_absence_of_objects_with_keypoints(read):
    images = [image(), image(8, "b.png")]
    categories = [{"id": 3, "name": "cat", "keypoints": ["nose"]}, {"id": 90, "name": "dog"}]
    posed = annotation(1, keypoints=[1, 1, 1])
    for other, expected in (
        ({"keypoints": [0, 0, 0]}, "detect pose"),
        ({}, "detect"),
        ({"category_id": 90}, "detect pose"),
    ):
        assert tasks(read([posed, annotation(2, image_id=8, **other)], images, categories)) == {"a.png": "detect pose", "b.png": expected}
    assert tasks(read([annotation(2, category_id=90)], images, categories)) == {"a.png": "detect", "b.png": "detect"}


def test_an_entry_with_labels_is_annotated_for_classify_and_a_file_without_boxes_for_nothing_else(read):
    images = [image(labels=[]), image(8, "b.png")]
    assert tasks(read([annotation()], images, image_classes=["wet"])) == {"a.png": "classify detect", "b.png": "detect"}
    assert tasks(read([], images, image_classes=["wet"])) == {"a.png": "classify", "b.png": ""}
    assert tasks(read([], images)) == {"a.png": "detect", "b.png": "detect"}, "without image classes there is nothing to label"


def test_a_list_of_tasks_decides_and_is_checked(read):
    names = ["detect", "paint", 3]
    annotations = read([annotation(segmentation=TRIANGLE)], [image(tasks=["embed", "detect"]), image(8, "b.png", tasks=names)])
    assert tasks(annotations) == {"a.png": "detect embed", "b.png": "detect"}
    assert fault_locations(annotations) == [("unknown_task", "/images/1")]
    assert "found tasks ['detect', 'paint', 3], expected a list of some of detect, classify" in annotations.faults[0].message
    annotations = read([], [image(tasks=[]), image(8, "b.png", tasks="detect")])
    assert tasks(annotations) == {"a.png": "", "b.png": ""}
    assert fault_locations(annotations) == [("unknown_task", "/images/1")]


def test_cameras_are_whole_numbers_or_unknown(read):
    cameras = [3, -3, True, "3", 2.0, None, 2**70]
    images = [image(number, "a.png", camera=camera) for number, camera in enumerate(cameras)]
    assert [read([], [each]).images[0].camera for each in images] == [3, -1, -1, -1, -1, -1, -1]
    assert read([], [image()]).images[0].camera == -1


def test_labels_of_objects_are_the_classes_on_the_image_without_crowds(read):
    entries = [annotation(1, category_id=90), annotation(2, category_id=90), annotation(3, iscrowd=1), annotation(4, image_id=9)]
    images = [image(labels=["wet"]), image(8, "b.png"), image(9, "c.png", tasks=["embed"])]
    annotations = add_labels_of_objects(read(entries, images))
    assert annotations.image_classes == ("cat", "dog")
    assert [(item.image_labels, item.tasks) for item in annotations.images] == [
        ((1,), ("classify", "detect")),
        ((), ("classify", "detect")),
        ((), ("embed",)),
    ]


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "/categories/1: found id 1 or name 'b' a second time"),
        ([{"id": 1, "name": "a"}, {"id": 2, "name": "a"}], "/categories/1: found id 2 or name 'a' a second time"),
        ([{"id": None, "name": "a"}], "/categories/0: found id None"),
        ([{"id": 1, "name": "a"}, {"id": "1", "name": "b"}], "/categories/1: found id 1 or name 'b' a second time"),
        ([7], "/categories/0: found 7, expected an id and a name"),
        ([{"id": 1, "name": "a", "keypoints": "nose"}], "found keypoints 'nose', expected a list of names"),
        ([{"id": 1, "name": "a"}, {"id": 2, "name": "b", "keypoints": ["x", "x"]}], r"/categories/1: found keypoints \['x', 'x'\]"),
    ],
)
def test_ambiguous_categories_are_refused(read, categories, message):
    with pytest.raises(DataError, match=message):
        read([], categories=categories)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"images": [], "annotations": 3, "categories": []}', "[" * 100_000, b"\xff\xfe\xfa"])
def test_a_file_that_is_not_coco_json_is_refused(tmp_path, write_image, text):
    write_image(tmp_path / "images" / "a.png")
    (tmp_path / "coco.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=r"coco\.json.*expected COCO"):
        read_coco(ImageFolder(str(tmp_path / "images")), str(tmp_path / "coco.json"))


def test_real_nuclei_and_flies_have_no_faults(shared: Path):
    nuclei = shared / "datasets" / "dsb2018_nuclei"
    annotations = read_coco(ImageFolder(str(nuclei / "images")), str(nuclei / "val.json"))
    assert (len(annotations.images), sum(len(item.objects) for item in annotations.images), annotations.faults) == (133, 4962, ())
    assert annotations.image_classes == ("brightfield_gray", "fluorescence_dark", "stained_purple")
    flies = shared / "datasets" / "flies_jde"
    annotations = read_coco(ImageFolder(str(flies / "images")), str(flies / "val.json"))
    assert (len(annotations.images), len(annotations.keypoint_names), annotations.has_identities, annotations.faults) == (96, 13, True, ())

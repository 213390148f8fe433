"""Annotations of further tasks reach the shards unchanged, and each image keeps the tasks that it is annotated for."""

import json
import subprocess
import sys
from pathlib import Path

from packed import all_records
from yolor_ray.config import PackCocoConfig
from yolor_ray.data.shards.dataset import open_dataset
from yolor_ray.pack.run import pack

JOB = Path(__file__).resolve().parents[2] / "jobs" / "pack.py"


def run_job(*flags: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(JOB), *flags], capture_output=True, text=True, timeout=120, check=False)


def test_all_tasks_of_a_coco_file_reach_the_shards(tmp_path, write_image):
    write_image(tmp_path / "images" / "a.png")
    annotation = {"id": 1, "image_id": 1, "category_id": 4, "bbox": [4, 4, 20, 20], "iscrowd": 0, "identity": 8}
    annotation |= {"segmentation": [[4, 4, 24, 4, 24, 24, 4, 24]], "keypoints": [5, 6, 2]}
    images = [{"id": 1, "file_name": "a.png", "width": 64, "height": 48, "labels": ["wet"]}]
    categories = [{"id": 4, "name": "cat", "keypoints": ["nose"]}]
    (tmp_path / "coco.json").write_text(json.dumps({"images": images, "annotations": [annotation], "categories": categories}))
    pack(PackCocoConfig(images=str(tmp_path / "images"), annotations=str(tmp_path / "coco.json"), output=str(tmp_path / "out")))
    dataset = open_dataset(str(tmp_path / "out"))
    assert dataset.tasks == ("classify", "detect", "embed", "pose", "segment")
    assert (dataset.image_classes, dataset.keypoint_names) == (("wet",), ("nose",))
    (record,) = all_records(str(tmp_path / "out"))
    assert record.image_labels.tolist() == [0]
    assert record.objects.identities.tolist() == [8]
    assert record.objects.keypoints.tolist() == [[[5, 6, 2]]]
    assert record.objects.areas.tolist() == [400]


def test_crops_become_objects_of_the_whole_image_with_identity_and_camera(tmp_path, write_image):
    for seed, (name, width) in enumerate({"car_07_cam2.png": 40, "bus_01_cam1.png": 64, "car_07_cam1.png": 50, "spare.png": 30}.items()):
        write_image(tmp_path / "images" / name, width, 48, seed)
    out = str(tmp_path / "out")
    flags = ["crops", "--images", str(tmp_path / "images"), "--output", out, "--image_labels", "present"]
    done = run_job(*flags, "--pattern", r"(?P<identity>(?P<class>[a-z]+)_\d+)_cam(?P<camera>\d+)")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"images": 3, "boxes": 3, "faults": {"bad_name": 1}, "output": out, "health": f"{out}/health.html"}
    dataset = open_dataset(str(tmp_path / "out"))
    assert (dataset.classes, dataset.image_classes, dataset.tasks) == (("bus", "car"), ("bus", "car"), ("classify", "detect", "embed"))
    records = {record.name: record for record in all_records(str(tmp_path / "out"))}
    contents = {name: (r.objects.identities.tolist(), r.camera, r.image_labels.tolist()) for name, r in records.items()}
    assert contents == {"bus_01_cam1.png": ([0], 0, [0]), "car_07_cam1.png": ([1], 0, [1]), "car_07_cam2.png": ([1], 1, [1])}
    assert [records[name].objects.boxes_xyxy.tolist() for name in sorted(records)] == [[[0, 0, width, 48]] for width in (64, 50, 40)]
    refused = run_job(*flags, "--pattern", "(?P<who>.*)")
    assert (refused.returncode, "pattern: found named groups who, expected" in refused.stderr) == (2, True)


def test_each_image_keeps_the_tasks_that_it_is_annotated_for(tmp_path, write_image):
    for seed, name in enumerate("abc"):
        write_image(tmp_path / "images" / f"{name}.png", seed=seed)
    masked = {"id": 1, "image_id": 0, "category_id": 1, "bbox": [4, 4, 20, 20], "segmentation": [[4, 4, 24, 4, 24, 24, 4, 24]]}
    plain = {"id": 2, "image_id": 1, "category_id": 1, "bbox": [4, 4, 20, 20]}
    images = [{"id": number, "file_name": f"{name}.png", "width": 64, "height": 48, "camera": number} for number, name in enumerate("abc")]
    images[1]["labels"] = []
    images[2]["labels"] = ["wet"]
    content = {"images": images, "annotations": [masked, plain], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "coco.json").write_text(json.dumps(content))
    sources = {"images": str(tmp_path / "images"), "annotations": str(tmp_path / "coco.json")}
    pack(PackCocoConfig(**sources, output=str(tmp_path / "out")))
    assert open_dataset(str(tmp_path / "out")).tasks == ("classify", "detect", "segment")
    kept = {record.name: (record.tasks, record.camera) for record in all_records(str(tmp_path / "out"))}
    both, all_three = ("detect", "segment"), ("classify", "detect", "segment")
    assert kept == {"a.png": (both, 0), "b.png": (("classify", "detect"), 1), "c.png": (all_three, 2)}
    pack(PackCocoConfig(**sources, output=str(tmp_path / "present"), image_labels="present"))
    dataset = open_dataset(str(tmp_path / "present"))
    assert dataset.image_classes == dataset.classes == ("cat",)
    labels = {record.name: record.image_labels.tolist() for record in all_records(str(tmp_path / "present"))}
    assert labels == {"a.png": [0], "b.png": [0], "c.png": []}

"""The pack job on a Ray cluster and with an S3 server."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from packed import all_records
from yolor_ray.config import PackCheckConfig, PackScenesConfig, PackVocConfig, PackYoloConfig
from yolor_ray.data.shards.dataset import open_dataset
from yolor_ray.errors import DataError, StorageError
from yolor_ray.io import storage
from yolor_ray.pack import plan
from yolor_ray.pack.health import scan
from yolor_ray.pack.run import pack, pack_scenes

JOB = Path(__file__).resolve().parents[2] / "jobs" / "pack.py"


def faults_of(url: str) -> list[dict]:
    return [json.loads(line) for line in storage.read_bytes(storage.join(url, "faults.jsonl")).splitlines()]


def run_job(*flags: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(JOB), *flags], capture_output=True, text=True, timeout=300, check=False, env=environment)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_bccd_is_packed_into_s3_with_its_known_boxes_and_faults(split, shared, s3, ray_cluster):
    folder = shared / "datasets" / "bccd"
    output = storage.join(s3(), "bccd", split)
    split_file = str(folder / "ImageSets" / "Main" / f"{split}.txt")
    sources = {"images": str(folder / "JPEGImages"), "annotations": str(folder / "Annotations"), "split_file": split_file}
    result = pack(PackVocConfig(**sources, output=output, shard_mb=0.5))
    images, boxes, faulty = {"train": (205, 2804, "343"), "val": (87, 1137, "338"), "test": (72, 945, None)}[split]
    counts = {"images": images, "boxes": boxes, "faults": {"zero_area_box": 1} if faulty else {}}
    assert result == {**counts, "output": output, "health": f"{output}/health.html"}
    dataset = open_dataset(output)
    assert dataset.classes == ("Platelets", "RBC", "WBC")
    assert dataset.boxes == sum(dataset.boxes_per_class.values()) == boxes
    assert len(dataset.shards) > 2
    records = all_records(output)
    assert sum(len(record.objects.labels) for record in records) == boxes
    assert {record.name for record in records} == {f"{stem}.jpg" for stem in Path(split_file).read_text().split()}
    assert all(record.image == (folder / "JPEGImages" / record.name).read_bytes() for record in records)
    lines = {"343": 50, "338": 158}
    assert [(Path(f["file"]).stem, f["line"]) for f in faults_of(output)] == ([(f"BloodImage_00{faulty}", lines[faulty])] if faulty else [])


def test_a_dataset_packed_by_ray_in_s3_equals_one_packed_in_this_process(yolo_set, tmp_path, s3, ray_cluster):
    sources = yolo_set()
    bucket = s3()
    for name in ("images", "labels"):
        for file in (tmp_path / name).iterdir():
            storage.write_bytes(storage.join(bucket, name, file.name), file.read_bytes())
    remote = {"images": f"{bucket}/images", "annotations": f"{bucket}/labels", "names": sources["names"]}
    shard_mb = 4 * (tmp_path / "images" / "000.png").stat().st_size / 1e6
    remote_result = pack(PackYoloConfig(**remote, output=f"{bucket}/set", shard_mb=shard_mb))
    local_result = pack(PackYoloConfig(**sources, output=str(tmp_path / "local")))
    for result in (remote_result, local_result):
        assert (result["images"], result["boxes"], result["faults"]) == (12, 24, {})
    assert len(open_dataset(f"{bucket}/set").shards) > 1
    assert [r.name for r in all_records(f"{bucket}/set")] == [r.name for r in all_records(str(tmp_path / "local"))]
    names = [name for name in storage.list_names(f"{bucket}/set") if not name.startswith("part-")]
    assert names == ["dataset.json", "faults.jsonl", "health.html", "health.json", "image_hashes.uint64"]


def test_a_health_report_made_by_ray_from_s3_equals_one_made_in_this_process(tmp_path, monkeypatch, s3, ray_cluster):
    remote, local = s3(), str(tmp_path)
    for url in (remote, local):
        pack_scenes(f"{url}/train", 150, seed=0, size_px=64)
        pack_scenes(f"{url}/val", 70, seed=0, size_px=64)
    in_process = pack(PackCheckConfig(url=f"{local}/val", against=f"{local}/train"))
    monkeypatch.setattr(scan, "IMAGES_PER_TASK", 64)
    by_ray = pack(PackCheckConfig(url=f"{remote}/val", against=f"{remote}/train"))
    assert by_ray["findings"] == in_process["findings"]
    assert by_ray["findings"]["leak"] == 70
    reports = [json.loads(storage.read_bytes(f"{url}/val/health.json")) for url in (remote, local)]
    assert [report["url"] for report in reports] == [f"{remote}/val", f"{local}/val"]
    assert json.dumps(reports[0]).replace(remote, local) == json.dumps(reports[1])


def test_an_image_deleted_while_packing_is_an_error_with_its_name(yolo_set, tmp_path, monkeypatch, ray_cluster):
    sources = yolo_set()
    read_yolo = plan.read_yolo

    def read_then_delete_an_image(*arguments):
        annotations = read_yolo(*arguments)
        (tmp_path / "images" / "007.png").unlink()
        return annotations

    monkeypatch.setattr(plan, "read_yolo", read_then_delete_an_image)
    with pytest.raises(StorageError, match=r"007\.png: not found"):
        pack(PackYoloConfig(**sources, output=str(tmp_path / "out"), shard_mb=0.002))
    assert not storage.exists(str(tmp_path / "out" / "dataset.json"))


def test_scenes_are_the_same_with_and_without_ray(tmp_path, monkeypatch, ray_cluster):
    monkeypatch.setattr(plan, "SCENES_PER_SHARD", 3)
    local = pack_scenes(str(tmp_path / "local"), count=7, seed=0, size_px=64)
    by_ray = pack(PackScenesConfig(output=str(tmp_path / "ray"), count=7, seed=0, size_px=64))
    other = pack_scenes(str(tmp_path / "other"), count=7, seed=1, size_px=64)
    digests = [open_dataset(result["output"]).digest for result in (local, by_ray, other)]
    assert digests[0] == digests[1] != digests[2]
    assert local["images"] == 7
    assert local["boxes"] == open_dataset(local["output"]).boxes > 0


def test_a_killed_pack_leaves_no_dataset_and_a_rerun_finishes_it(yolo_set, s3, ray_cluster):
    sources = yolo_set(100)
    output = storage.join(s3(), "set")
    flags = ["yolo", *(word for name, value in sources.items() for word in (f"--{name}", value)), "--output", output, "--shard-mb", "0.001"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    job = subprocess.Popen([sys.executable, str(JOB), *flags], **quiet, env=ray_cluster, start_new_session=True)
    deadline = time.monotonic() + 200
    while not storage.list_names(output) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    assert storage.list_names(output) != []
    with pytest.raises(DataError, match=r"dataset\.json: not found"):
        open_dataset(output)
    finished = run_job(*flags, environment=ray_cluster)
    assert finished.returncode == 0, finished.stderr
    counts = {"images": 100, "boxes": 200, "faults": {}}
    assert json.loads(finished.stdout.splitlines()[-1]) == {**counts, "output": output, "health": f"{output}/health.html"}
    assert len(all_records(output)) == 100

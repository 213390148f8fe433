import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from yolor_ray.config import PackScenesConfig, PackVocConfig, PackYoloConfig
from yolor_ray.data.shards.dataset import open_dataset, read_row_group, records
from yolor_ray.errors import ConfigError, DataError, StorageError
from yolor_ray.io import storage
from yolor_ray.pack import run as packing
from yolor_ray.pack import shard_builder
from yolor_ray.pack.run import pack, pack_scenes

JOB = Path(__file__).resolve().parents[2] / "jobs" / "pack.py"


@pytest.fixture
def yolo_set(tmp_path, write_image):
    """Write a YOLO data set of 12 images; keyword arguments overwrite label files."""

    def write(count: int = 12, **labels: str) -> dict[str, str]:
        for number in range(count):
            write_image(tmp_path / "images" / f"{number:03d}.png", seed=number)
            label = tmp_path / "labels" / f"{number:03d}.txt"
            label.parent.mkdir(exist_ok=True)
            label.write_text(labels.get(f"n{number}", "0 0.5 0.5 0.5 0.5\n1 0.25 0.25 0.1 0.1\n"))
        (tmp_path / "names.txt").write_text("cat\ndog\n")
        return {"images": str(tmp_path / "images"), "annotations": str(tmp_path / "labels"), "names": str(tmp_path / "names.txt")}

    return write


def all_records(url: str) -> list:
    dataset = open_dataset(url)
    return [record for group in dataset.row_groups for record in records(read_row_group(dataset, group))]


def faults_of(url: str) -> list[dict]:
    return [json.loads(line) for line in storage.read_bytes(storage.join(url, "faults.jsonl")).splitlines()]


def run_job(*flags: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(JOB), *flags], capture_output=True, text=True, timeout=120, check=False, env=environment)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_bccd_packs_into_s3_with_the_known_boxes_and_faults(split, shared, s3, ray_cluster):
    folder = shared / "datasets" / "bccd"
    output = storage.join(s3(), "bccd", split)
    split_file = str(folder / "ImageSets" / "Main" / f"{split}.txt")
    sources = {"images": str(folder / "JPEGImages"), "annotations": str(folder / "Annotations"), "split_file": split_file}
    result = pack(PackVocConfig(**sources, output=output, shard_mb=0.5))
    images, boxes, faulty = {"train": (205, 2804, "343"), "val": (87, 1137, "338"), "test": (72, 945, None)}[split]
    assert result == {"images": images, "boxes": boxes, "faults": {"zero_area_box": 1} if faulty else {}, "output": output}
    dataset = open_dataset(output)
    assert dataset.classes == ("Platelets", "RBC", "WBC")
    assert dataset.boxes == sum(dataset.boxes_per_class.values()) == boxes
    assert len(dataset.shards) > 2
    found = all_records(output)
    assert sum(len(record.objects.labels) for record in found) == boxes
    assert {record.name for record in found} == {f"{stem}.jpg" for stem in Path(split_file).read_text().split()}
    assert all(record.image == (folder / "JPEGImages" / record.name).read_bytes() for record in found)
    lines = {"343": 50, "338": 158}
    assert [(Path(f["file"]).stem, f["line"]) for f in faults_of(output)] == ([(f"BloodImage_00{faulty}", lines[faulty])] if faulty else [])


def test_a_set_packed_by_ray_into_s3_from_s3_equals_one_packed_here(yolo_set, tmp_path, s3, ray_cluster):
    sources = yolo_set()
    bucket = s3()
    for name in ("images", "labels"):
        for file in (tmp_path / name).iterdir():
            storage.write_bytes(storage.join(bucket, name, file.name), file.read_bytes())
    remote = {"images": f"{bucket}/images", "annotations": f"{bucket}/labels", "names": sources["names"]}
    shard_mb = 4 * (tmp_path / "images" / "000.png").stat().st_size / 1e6
    many = pack(PackYoloConfig(**remote, output=f"{bucket}/set", shard_mb=shard_mb))
    one = pack(PackYoloConfig(**sources, output=str(tmp_path / "one")))
    assert (many["images"], many["boxes"], many["faults"]) == (one["images"], one["boxes"], one["faults"]) == (12, 24, {})
    assert len(open_dataset(f"{bucket}/set").shards) > 1
    assert [r.name for r in all_records(f"{bucket}/set")] == [r.name for r in all_records(str(tmp_path / "one"))]
    assert sorted(name for name in storage.list_names(f"{bucket}/set") if not name.startswith("part-")) == ["dataset.json", "faults.jsonl"]


def test_records_are_mixed_and_packing_again_changes_nothing(yolo_set, tmp_path):
    config = PackYoloConfig(**yolo_set(), output=str(tmp_path / "out"))
    first = pack(config)
    names = [record.name for record in all_records(config.output)]
    assert sorted(names) != names
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}
    assert pack(config) == first
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()} == before


def test_another_finished_data_set_at_the_output_is_never_overwritten(yolo_set, tmp_path):
    config = PackYoloConfig(**yolo_set(), output=str(tmp_path / "out"))
    pack(config)
    digest = open_dataset(config.output).digest
    yolo_set(n3="0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(DataError, match=r"found a finished data set of 12 images with digest .*expected .*another output"):
        pack(config)
    assert open_dataset(config.output).digest == digest
    assert len(all_records(config.output)) == 12


@pytest.mark.parametrize("fault", ["label", "image"])
def test_strict_refuses_and_publishes_nothing(yolo_set, tmp_path, fault):
    sources = yolo_set(n3="7 0.5 0.5 0.1 0.1\n" if fault == "label" else "")
    if fault == "image":
        (tmp_path / "images" / "003.png").write_bytes(b"")
    place = {"label": r"003\.txt:1: unknown_class", "image": r"003\.png: broken_image: empty_image"}[fault]
    with pytest.raises(DataError, match=rf"found 1 faults, expected none with --strict; nothing was packed:\n.*{place}"):
        pack(PackYoloConfig(**sources, output=str(tmp_path / "out"), strict=True))
    assert storage.list_names(str(tmp_path / "out")) == []


def test_broken_and_repeated_images_are_reported_and_the_rest_is_packed(yolo_set, tmp_path, write_image):
    sources = yolo_set()
    images = tmp_path / "images"
    (images / "001.png").write_bytes((images / "001.png").read_bytes()[:-60])
    (images / "002.png").write_bytes(b"<html>not found</html>")
    (images / "003.png").write_bytes(b"")
    write_image(images / "cut.jpg", 640, 480)
    (images / "cut.jpg").write_bytes((images / "cut.jpg").read_bytes()[:-200])
    (images / "005.png").write_bytes((images / "004.png").read_bytes())
    result = pack(PackYoloConfig(**sources, output=str(tmp_path / "out")))
    assert (result["images"], result["faults"]) == (9, {"broken_image": 4, "duplicate_image": 1})
    messages = {Path(fault["file"]).name: fault["message"] for fault in faults_of(result["output"])}
    kinds = {"001.png": "truncated_image", "002.png": "unsupported_image", "003.png": "empty_image", "cut.jpg": "truncated_image"}
    assert all(messages[name].startswith(f"{code}: ") for name, code in kinds.items())
    assert "found the very same bytes as in" in next(message for name, message in messages.items() if name in ("004.png", "005.png"))


def test_a_set_without_usable_image_is_refused_and_leaves_nothing(yolo_set, tmp_path):
    sources = yolo_set(1)
    (tmp_path / "images" / "000.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"found no usable image, expected at least one; 1 faults: .*000\.png: broken_image"):
        pack(PackYoloConfig(**sources, output=str(tmp_path / "out")))
    assert storage.list_names(str(tmp_path / "out")) == []


def test_an_image_that_vanishes_under_way_is_an_error_that_names_it(yolo_set, tmp_path, monkeypatch, ray_cluster):
    sources = yolo_set()
    read_labels = packing.read_yolo

    def read_then_lose(*arguments):
        found = read_labels(*arguments)
        (tmp_path / "images" / "007.png").unlink()
        return found

    monkeypatch.setattr(packing, "read_yolo", read_then_lose)
    with pytest.raises(StorageError, match=r"007\.png: not found"):
        pack(PackYoloConfig(**sources, output=str(tmp_path / "out"), shard_mb=0.002))
    assert not storage.exists(str(tmp_path / "out" / "dataset.json"))


def test_a_pack_that_died_goes_on_with_the_parts_that_are_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "SCENES_PER_PART", 2)
    clean = pack_scenes(str(tmp_path / "clean"), count=6, seed=1, size_px=64)
    made = []

    def die_at_third_part(index, seed, size_px):
        made.append(index)
        if len(made) == 5:
            raise KeyboardInterrupt
        return scene(index, seed, size_px)

    scene = shard_builder.scene
    monkeypatch.setattr(shard_builder, "scene", die_at_third_part)
    with pytest.raises(KeyboardInterrupt):
        pack_scenes(str(tmp_path / "out"), count=6, seed=1, size_px=64)
    with pytest.raises(DataError, match="not found"):
        open_dataset(str(tmp_path / "out"))
    (tmp_path / "out" / "part-00009-0123456789ab.parquet").write_bytes(b"left over by a longer pack")
    made.clear()
    again = pack_scenes(str(tmp_path / "out"), count=6, seed=1, size_px=64)
    assert made == [4, 5]
    assert open_dataset(again["output"]).digest == open_dataset(clean["output"]).digest
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in (tmp_path / "clean").iterdir())


def test_notes_of_other_content_are_not_believed(yolo_set, tmp_path):
    config = PackYoloConfig(**yolo_set(), output=str(tmp_path / "out"))
    pack(config)
    (tmp_path / "out" / "dataset.json").unlink()
    digest = shard_builder.build_shard(packing._plan(config, *read_again(config)).parts[0]).shard.sha256
    yolo_set(n3="0 0.5 0.5 0.1 0.1\n")
    assert shard_builder.build_shard(packing._plan(config, *read_again(config)).parts[0]).shard.sha256 != digest


def read_again(config: PackYoloConfig):
    folder = packing.ImageFolder(config.images)
    return folder, packing.read_yolo(folder, config.annotations, config.names)


def test_scenes_are_the_same_with_and_without_ray_and_another_seed_is_another_set(tmp_path, monkeypatch, ray_cluster):
    monkeypatch.setattr(packing, "SCENES_PER_PART", 3)
    here = pack_scenes(str(tmp_path / "here"), count=7, seed=0, size_px=64)
    there = pack(PackScenesConfig(output=str(tmp_path / "there"), count=7, seed=0, size_px=64))
    other = pack_scenes(str(tmp_path / "other"), count=7, seed=1, size_px=64)
    digests = [open_dataset(result["output"]).digest for result in (here, there, other)]
    assert digests[0] == digests[1] != digests[2]
    assert here["images"] == 7
    assert here["boxes"] == open_dataset(here["output"]).boxes > 0


def test_a_kill_in_the_middle_leaves_no_data_set_and_a_rerun_finishes_it(yolo_set, s3, ray_cluster):
    sources = yolo_set(100)
    output = storage.join(s3(), "set")
    flags = ["yolo", *(word for name, value in sources.items() for word in (f"--{name}", value)), "--output", output, "--shard-mb", "0.001"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    job = subprocess.Popen([sys.executable, str(JOB), *flags], **quiet, env=ray_cluster, start_new_session=True)
    deadline = time.monotonic() + 60
    while not storage.list_names(output) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    assert storage.list_names(output) != []
    with pytest.raises(DataError, match=r"dataset\.json: not found"):
        open_dataset(output)
    finished = run_job(*flags, environment=ray_cluster)
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout.splitlines()[-1]) == {"images": 100, "boxes": 200, "faults": {}, "output": output}
    assert len(all_records(output)) == 100


def test_the_job_prints_one_json_line_and_shows_no_secret(yolo_set, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret")
    sources = yolo_set(2, n1="5 0.5 0.5 0.5 0.5")
    flags = [word for name, value in sources.items() for word in (f"--{name}", value)]
    done = run_job("yolo", *flags, "--output", str(tmp_path / "out"))
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"images": 2, "boxes": 2, "faults": {"unknown_class": 1}, "output": str(tmp_path / "out")}
    assert "001.txt:1" in done.stderr
    refused = run_job("yolo", *flags, "--output", str(tmp_path / "strict"), "--strict")
    assert refused.returncode == 2
    assert "001.txt:1: unknown_class" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert "canary" not in done.stderr + done.stdout + refused.stderr


def test_bad_numbers_in_the_configuration_are_refused():
    with pytest.raises(ConfigError, match="shard_mb: found 0"):
        PackScenesConfig(output="x", shard_mb=0)
    with pytest.raises(ConfigError, match="count, size_px: found 0, 320"):
        PackScenesConfig(output="x", count=0)

"""The pack job on small datasets, in this process."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from packed import all_records
from yolor_ray.config import PackScenesConfig, PackVocConfig, PackYoloConfig
from yolor_ray.data.shards.dataset import open_dataset
from yolor_ray.errors import ConfigError, DataError
from yolor_ray.io import storage
from yolor_ray.pack import plan, run, shard_builder
from yolor_ray.pack.run import pack, pack_scenes
from yolor_ray.pack.shard_builder import ShardResult

JOB = Path(__file__).resolve().parents[2] / "jobs" / "pack.py"


def faults_of(url: str) -> list[dict]:
    return [json.loads(line) for line in storage.read_bytes(storage.join(url, "faults.jsonl")).splitlines()]


def run_job(*flags: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(JOB), *flags], capture_output=True, text=True, timeout=120, check=False)


def test_records_are_mixed_and_packing_again_changes_nothing(yolo_set, tmp_path):
    config = PackYoloConfig(**yolo_set(), output=str(tmp_path / "out"))
    first = pack(config)
    names = [record.name for record in all_records(config.output)]
    assert sorted(names) != names
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}
    assert pack(config) == first
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()} == before


def test_another_finished_dataset_at_the_output_is_never_overwritten(yolo_set, tmp_path):
    config = PackYoloConfig(**yolo_set(), output=str(tmp_path / "out"))
    pack(config)
    digest = open_dataset(config.output).digest
    yolo_set(n3="0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(DataError, match=r"found a finished dataset of 12 images with digest .*expected .*another output"):
        pack(config)
    assert open_dataset(config.output).digest == digest
    assert len(all_records(config.output)) == 12


@pytest.mark.parametrize("same", [True, False], ids=["the same images", "other images"])
def test_two_jobs_that_pack_to_one_output_at_once_leave_the_first_finished_dataset(yolo_set, tmp_path, monkeypatch, same):
    """The second job would delete the shards of the first, or publish a dataset whose shards the first one deleted."""
    output = str(tmp_path / "out")
    first = pack(PackYoloConfig(**yolo_set(), output=str(tmp_path / "expected")))
    config, build = PackYoloConfig(**yolo_set(), output=output), run._build_shards
    slow = config if same else PackScenesConfig(output=output, count=12, seed=3)

    def build_while_another_job_packs(*arguments: object, **options: object) -> Iterator[ShardResult]:
        results = list(build(*arguments, **options))
        monkeypatch.setattr(run, "_build_shards", build)
        pack(config)
        yield from results

    monkeypatch.setattr(run, "_build_shards", build_while_another_job_packs)
    if same:
        assert pack(slow) | {"output": "", "health": ""} == first | {"output": "", "health": ""}
    else:
        with pytest.raises(DataError, match=r"found a finished dataset of 12 images with digest .*expected .*another output"):
            pack(slow)
    assert len(all_records(output)) == 12
    expected = {file.name for file in (tmp_path / "expected").iterdir()}
    assert {file.name for file in (tmp_path / "out").iterdir()} == expected, "no shard of the other job stays"


@pytest.mark.parametrize("fault", ["label", "image"])
def test_strict_refuses_and_publishes_nothing(yolo_set, tmp_path, fault):
    sources = yolo_set(n3="7 0.5 0.5 0.1 0.1\n" if fault == "label" else "")
    if fault == "image":
        (tmp_path / "images" / "003.png").write_bytes(b"")
    location = {"label": r"003\.txt:1: unknown_class", "image": r"003\.png: broken_image: empty_image"}[fault]
    count = {"label": 2, "image": 1}[fault]
    with pytest.raises(DataError, match=rf"found {count} faults, expected none with --strict; nothing was packed:\n.*{location}"):
        pack(PackYoloConfig(**sources, output=str(tmp_path / "out"), strict=True))
    assert storage.list_names(str(tmp_path / "out")) == []


def test_broken_and_duplicate_images_are_reported_and_the_rest_is_packed(yolo_set, tmp_path, write_image):
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
    codes = {"001.png": "truncated_image", "002.png": "unsupported_image", "003.png": "empty_image", "cut.jpg": "truncated_image"}
    assert all(messages[name].startswith(f"{code}: ") for name, code in codes.items())
    assert "found the very same bytes as in" in next(message for name, message in messages.items() if name in ("004.png", "005.png"))


def test_a_dataset_without_usable_image_is_refused_and_leaves_nothing(yolo_set, tmp_path):
    sources = yolo_set(1)
    (tmp_path / "images" / "000.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"found no usable image, expected at least one; 1 faults: .*000\.png: broken_image"):
        pack(PackYoloConfig(**sources, output=str(tmp_path / "out")))
    assert storage.list_names(str(tmp_path / "out")) == []


def test_a_pack_that_died_continues_with_the_missing_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "SCENES_PER_SHARD", 2)
    clean = pack_scenes(str(tmp_path / "clean"), count=6, seed=1, size_px=64)
    made = []

    def die_in_third_shard(index, seed, size_px):
        made.append(index)
        if len(made) == 5:
            raise KeyboardInterrupt
        return scene(index, seed, size_px)

    scene = shard_builder.scene
    monkeypatch.setattr(shard_builder, "scene", die_in_third_shard)
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


def test_progress_files_of_other_content_are_ignored(yolo_set, tmp_path):
    config = PackYoloConfig(**yolo_set(), output=str(tmp_path / "out"))
    first = shard_builder.build_shard(plan.plan_annotated(config).shard_tasks[0]).shard
    again = shard_builder.build_shard(plan.plan_annotated(config).shard_tasks[0]).shard
    yolo_set(n3="0 0.5 0.5 0.1 0.1\n")
    changed = shard_builder.build_shard(plan.plan_annotated(config).shard_tasks[0]).shard
    assert first.sha256 == again.sha256 != changed.sha256


def test_the_job_prints_one_json_line_and_shows_no_secret(yolo_set, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret")
    sources = yolo_set(2, n1="5 0.5 0.5 0.5 0.5")
    flags = [word for name, value in sources.items() for word in (f"--{name}", value)]
    out = str(tmp_path / "out")
    done = run_job("yolo", *flags, "--output", out)
    assert done.returncode == 0
    assert json.loads(done.stdout) == {
        "images": 1,
        "boxes": 2,
        "faults": {"not_fully_annotated": 1, "unknown_class": 1},
        "output": out,
        "health": f"{out}/health.html",
    }
    assert "001.txt:1" in done.stderr
    refused = run_job("yolo", *flags, "--output", str(tmp_path / "strict"), "--strict")
    assert refused.returncode == 2
    assert "001.txt:1: unknown_class" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert "canary" not in done.stderr + done.stdout + refused.stderr


def test_bad_numbers_in_the_configuration_are_refused():
    with pytest.raises(ConfigError, match="shard_mb: found 0"):
        PackVocConfig(images="i", annotations="a", output="x", shard_mb=0)
    with pytest.raises(ConfigError, match="count, size_px: found 0, 320"):
        PackScenesConfig(output="x", count=0)

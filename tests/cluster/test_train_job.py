"""Train by the command on real Ray workers, with data and run folder in a real S3 server."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from yolor_ray import storage
from yolor_ray.model.weights import load_weights
from yolor_ray.runtime.checkpoint import newest_checkpoint
from yolor_ray.runtime.pack import pack_scenes

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "--network.stem_width 8 --network.widths 8 16 16 16 --network.depths 1 1 1 1 --data.image_px 64 --optim.batch 4 "
    "--optim.nominal_batch 4 --run.validate_every 2 --run.checkpoint_every 1 --cluster.threads 1"
)


@pytest.fixture(scope="module")
def data(s3: Callable[[], str]) -> tuple[str, str]:
    bucket = s3()
    for name, count, seed in (("train", 33, 0), ("val", 9, 1)):
        pack_scenes(f"{bucket}/{name}", count, seed)
    return f"{bucket}/train", f"{bucket}/val"


def command(data: tuple[str, str], storage_url: str, name: str, workers: str, epochs: int) -> list[str]:
    flags = f"--data.train {data[0]} --data.val {data[1]} --run.storage {storage_url} --run.name {name} --cluster.workers {workers}"
    return [sys.executable, "jobs/train.py", "nano", *flags.split(), *TINY.split(), "--optim.epochs", str(epochs)]


def run_job(arguments: list[str]) -> dict:
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=300, env=own_ray())
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def own_ray() -> dict[str, str]:
    """Return an environment in which the job starts a Ray of its own."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def test_two_workers_train_from_s3_and_see_every_record_once_an_epoch(data: tuple[str, str], s3: Callable[[], str]) -> None:
    result = run_job(command(data, f"{s3()}/runs", "two", "2", epochs=2))
    network, _info = load_weights(result["weights"])
    assert network.classes == 6
    assert set(result["metrics"]) >= {"AP", "AP50", "AR100"}
    rows = [json.loads(line) for line in storage.read_bytes(f"{result['run']}/metrics.jsonl").splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    tensors, state = newest_checkpoint(result["run"])
    assert state["step"] == 2 * 9, "33 records over 2 workers of 2 images are 9 steps an epoch"
    assert any(name.startswith("momentum/") for name in tensors)


def test_a_killed_job_resumes_by_the_same_command_and_equals_an_uninterrupted_one(data: tuple[str, str], s3: Callable[[], str]) -> None:
    runs = f"{s3()}/runs"
    arguments = command(data, runs, "killed", "1", epochs=4)
    job = subprocess.Popen(arguments, cwd=ROOT, env=own_ray(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while newest_checkpoint(f"{runs}/killed") is None:
        assert job.poll() is None and time.monotonic() < deadline, "no checkpoint was written before the kill"
        time.sleep(0.1)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    killed_at = newest_checkpoint(f"{runs}/killed")[1]["step"]
    resumed = run_job(arguments)
    whole = run_job(command(data, runs, "whole", "1", epochs=4))
    found, state = newest_checkpoint(resumed["run"])
    expected, expected_state = newest_checkpoint(whole["run"])
    assert killed_at <= state["step"] == expected_state["step"]
    assert all((found[name] == tensor).all() for name, tensor in expected.items())
    assert resumed["metrics"] == whole["metrics"]


def test_too_small_a_cluster_is_refused_at_once(data: tuple[str, str], tmp_path: Path) -> None:
    arguments = [*command(data, str(tmp_path), "big", "500", epochs=1), "--optim.batch", "500"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=120, env=own_ray())
    assert done.returncode == 2
    assert "500 workers and reading need" in done.stderr

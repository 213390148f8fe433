"""The training command on real Ray workers, with datasets and run folders in a real S3 server.

Jobs run in this process and join its cluster, which saves the start of a process and of a Ray; the disturbed job starts its own, as on a
laptop.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from yolor_ray import cli
from yolor_ray.errors import ConfigError
from yolor_ray.io import manifest, storage
from yolor_ray.model.weights import load_weights
from yolor_ray.pack.run import pack_scenes
from yolor_ray.train.checkpoint.attempts import read_attempts
from yolor_ray.train.checkpoint.checkpoint import newest_checkpoint
from yolor_ray.train.run import train
from yolor_ray.train.run_log import read_metrics

# Ray Data reads its own deprecated settings.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning", "ignore::UserWarning"
)
ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "--network.stem_width 8 --network.widths 8 16 16 16 --network.depths 1 1 1 1 --data.image_px 64 --optim.batch 4 "
    "--optim.nominal_batch 4 --run.validate_epochs 8 --run.checkpoint_steps 4 --cluster.compute_threads 1"
)
EPOCHS = 8
"""Long enough for two faults."""


@pytest.fixture(scope="module")
def data(s3: Callable[[], str]) -> tuple[str, str]:
    bucket = s3()
    for name, count, seed in (("train", 33, 0), ("val", 9, 1)):
        pack_scenes(f"{bucket}/{name}", count, seed)
    return f"{bucket}/train", f"{bucket}/val"


def command(data: tuple[str, str], storage_url: str, name: str, workers: str, epochs: int) -> list[str]:
    flags = f"--data.train {data[0]} --data.val {data[1]} --run.storage {storage_url} --run.name {name} --cluster.workers {workers}"
    return ["nano", *flags.split(), *TINY.split(), "--optim.epochs", str(epochs)]


def run_job(arguments: list[str]) -> dict:
    """Run a training in this process."""
    return train(cli.JOBS["train"].read(arguments, "yolor-ray train"))


def local_environment() -> dict[str, str]:
    """Return an environment in which the job starts its own Ray."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


@pytest.fixture(scope="module")
def undisturbed(data: tuple[str, str], s3: Callable[[], str], ray_cluster: dict[str, str]) -> dict:
    """Return the result of an undisturbed run of two workers."""
    return run_job(command(data, f"{s3()}/runs", "undisturbed", "2", EPOCHS))


def test_two_workers_train_from_s3_on_every_record_once_per_epoch(undisturbed: dict) -> None:
    network, _info = load_weights(undisturbed["weights"])
    assert network.classes == 6
    assert set(undisturbed["metrics"]) >= {"AP", "AP50", "AR100"}
    assert [(row["epoch"], row["records"]) for row in read_metrics(undisturbed["run"])] == [(n + 1, 33) for n in range(EPOCHS)]
    tensors, state = newest_checkpoint(undisturbed["run"])
    assert state["step"] == EPOCHS * 9, "33 records in steps of 4 are 9 steps per epoch"
    assert any(name.startswith("optimizer/exp_avg/") for name in tensors)


def wait_for(condition: Callable[[], object], job: subprocess.Popen) -> None:
    deadline = time.monotonic() + 400
    while not condition():
        assert job.poll() is None and time.monotonic() < deadline, "the job ended, or made no progress"
        time.sleep(0.05)


def checkpoint_steps(run: str) -> list[int]:
    """Return the steps of the run's complete checkpoints."""
    folder = f"{run}/checkpoints"
    return [int(name.partition("-")[0]) for name in storage.list_names(folder) if manifest.is_published(f"{folder}/{name}")]


def has_a_checkpoint_of_its_second_attempt(run: str) -> bool:
    attempts = read_attempts(run)
    return len(attempts) == 2 and max(checkpoint_steps(run)) > attempts[-1].from_step


def test_a_killed_worker_and_a_preempted_job_change_nothing(
    data: tuple[str, str], undisturbed: dict, s3: Callable[[], str], tmp_path: Path
) -> None:
    runs = f"{s3()}/runs"
    run, arguments = f"{runs}/disturbed", command(data, runs, "disturbed", "2", EPOCHS)

    output = tmp_path / "output"
    with output.open("wb") as log:
        job = subprocess.Popen(
            [sys.executable, "jobs/train.py", *arguments], cwd=ROOT, env=local_environment(), stdout=log, stderr=log, start_new_session=True
        )
    wait_for(lambda: checkpoint_steps(run), job)
    worker = next(p for p in psutil.Process(job.pid).children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline()))
    worker.kill()
    wait_for(lambda: has_a_checkpoint_of_its_second_attempt(run), job)
    started = psutil.Process(job.pid).children(recursive=True)
    # To every process, as systemd does: not to the job alone, nor to its process group as `timeout` does.
    for process in [*started, psutil.Process(job.pid)]:
        process.terminate()
    assert job.wait(180) == 143, output.read_text()[-3000:]
    assert psutil.wait_procs(started, timeout=10)[1] == []
    assert f"preempted: {run}: SIGTERM ended training; the same command resumes from the newest checkpoint" in output.read_text()
    preempted_at = max(checkpoint_steps(run))
    resumed = run_job(arguments)
    first, after_kill, after_sigterm = read_attempts(run)
    assert (first.attempt, after_kill.attempt, after_sigterm.attempt) == (1, 2, 3)
    assert after_kill.downtime_s > 0 and after_kill.restart_reason
    assert (after_sigterm.from_step, after_sigterm.lost_steps) == (preempted_at, 0), "a stop signal loses no step"
    (tensors, state), (expected, expected_state) = newest_checkpoint(resumed["run"]), newest_checkpoint(undisturbed["run"])
    assert state["step"] == expected_state["step"]
    assert all((tensors[name] == tensor).all() for name, tensor in expected.items())
    assert resumed["metrics"] == undisturbed["metrics"]
    assert [row["records"] for row in read_metrics(run)] == [33] * EPOCHS


@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_that_is_too_small_is_refused_at_once(data: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="500 workers need"):
        run_job([*command(data, str(tmp_path), "big", "500", epochs=1), "--optim.batch", "500"])

"""Studies run by the command, with data and results on a real S3 server: killed processes, failed trials, and the report."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from yolor_ray.config import DataConfig, NetworkConfig, OptimConfig, RunConfig, TrainConfig
from yolor_ray.config.presets import PLAIN
from yolor_ray.config.search_space import RECIPE
from yolor_ray.config.study import SearchConfig
from yolor_ray.io import storage
from yolor_ray.pack.run import pack_scenes
from yolor_ray.study.run import tune

# Ray Data reads its own deprecated settings.
in_this_process = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning", "ignore::UserWarning"
)
ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "--network.stem_width 8 --network.widths 8 16 16 16 --network.depths 1 1 1 1 --data.image_px 64 --optim.batch 4 "
    "--optim.nominal_batch 4 --run.checkpoint_epochs 1 --cluster.compute_threads 1"
)
TIMEOUT_S = 150
FIXED = ("5e-4", "0.937", "0.2", "0.05", "0.7", "0.3", "4", "3", "0.5", "0.1", "1", "0", "0", "0.015", "0.7", "0.4", "0")
"""One value for each dimension of the recipe after the learning rate."""


@pytest.fixture(scope="module")
def bucket(s3: Callable[[], str]) -> str:
    url = s3()
    for name, count, seed in (("train", 24, 0), ("val", 9, 1)):
        pack_scenes(f"{url}/{name}", count, seed)
    return url


def command(bucket: str, flags: str, name: str) -> list[str]:
    urls = f"--data.train {bucket}/train --data.val {bucket}/val --run.storage {bucket}/runs --run.name {name}"
    return [sys.executable, "jobs/tune.py", *flags.split(), *urls.split(), *TINY.split()]


def local_ray() -> dict[str, str]:
    """Return an environment in which the job starts a local Ray."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"OMP_NUM_THREADS": "1"}


def run_job(arguments: list[str], environment: dict[str, str]) -> tuple[dict, str]:
    """Run a job to its end and return its result and its log."""
    process = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1]), process.stderr


def finished_trials(study: str) -> dict[str, bytes]:
    """Return the manifest of the weights of each finished trial, by the trial's name."""
    manifests = {name: f"{study}/trials/{name}/weights/manifest.json" for name in storage.list_names(f"{study}/trials")}
    return {name: storage.read_bytes(url) for name, url in manifests.items() if storage.exists(url)}


def wait_for(condition: Callable[[], object], job: subprocess.Popen) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert job.poll() is None and time.monotonic() < deadline, "the job ended, or the wait timed out"
        time.sleep(0.1)


def checkpointed_trials(study: str) -> list[str]:
    """Return the names of the unfinished trials with a checkpoint."""
    names = set(storage.list_names(f"{study}/trials")) - finished_trials(study).keys()
    return [name for name in names if storage.list_names(f"{study}/trials/{name}/checkpoints")]


def kill_a_trial(job: subprocess.Popen) -> None:
    """Kill the process of a trial."""
    trial = next(p for p in psutil.Process(job.pid).children(recursive=True) if "ImplicitFunc" in " ".join(p.cmdline()))
    trial.send_signal(signal.SIGKILL)


@pytest.mark.chaos
def test_an_ablation_survives_a_killed_trial_and_a_killed_driver_and_repeats_no_finished_trial(
    bucket: str, ray_cluster: dict[str, str], tmp_path: Path
) -> None:
    arguments = command(bucket, "ablation nano --variants pr-add --seeds 2 --optim.epochs 12", "killed")
    study, log_file = f"{bucket}/runs/killed", tmp_path / "log"
    with log_file.open("wb") as log:
        job = subprocess.Popen(arguments, cwd=ROOT, env=local_ray(), stdout=log, stderr=log, start_new_session=True)
        wait_for(lambda: checkpointed_trials(study), job)
        kill_a_trial(job)
        wait_for(lambda: b"event=trial_retried" in log_file.read_bytes(), job)
        wait_for(lambda: finished_trials(study), job)
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
    before = finished_trials(study)
    assert 0 < len(before) < 4
    result, log_text = run_job(arguments, ray_cluster)
    assert (result["trials"], result["failed"]) == (4, 0)
    assert all(f"event=trial_started trial={name}" not in log_text for name in before)
    assert before.items() <= finished_trials(study).items()
    assert log_text.count("event=trial_started") == 4 - len(before)
    rows = list(csv.DictReader(io.StringIO(storage.read_bytes(f"{study}/trials.csv").decode())))
    assert sorted((row["variant"], row["seed"]) for row in rows) == [(v, s) for v in ("baseline", "pr-add") for s in ("0", "1")]
    report = storage.read_bytes(result["report"]).decode()
    assert "larger than noise" in report and "+PR" in report
    assert {"differences.png", "priors.png", "report.csv", "report.json"} <= set(storage.list_names(study))


def tiny_config(bucket: str, name: str, epochs: int) -> TrainConfig:
    return TrainConfig(
        network=NetworkConfig(stem="reorg", stem_width=8, widths=(8, 16, 16, 16), depths=(1, 1, 1, 1), neck_depth=1, implicit=PLAIN),
        data=DataConfig(train=f"{bucket}/train", val=f"{bucket}/val", image_px=64),
        optim=OptimConfig(epochs=epochs, batch=4, nominal_batch=4),
        run=RunConfig(storage=f"{bucket}/runs", name=name),
    )


@in_this_process
@pytest.mark.usefixtures("ray_cluster")
def test_a_search_continues_after_a_failed_trial(bucket: str) -> None:
    fixed = (f"{argument.partition('=')[0]}={value}" for argument, value in zip(RECIPE[1:], FIXED, strict=True))
    arguments = ("optim.lr=0.01,1e9", *fixed)
    result = tune(SearchConfig(train=tiny_config(bucket, "hot", epochs=5), trials=5, search=arguments))
    assert (result["trials"], result["failed"]) == (2, 1), "the search space has only two settings"
    assert json.loads(storage.read_bytes(result["best"]))["optim"]["lr"] == 0.01
    rows = csv.DictReader(io.StringIO(storage.read_bytes(f"{bucket}/runs/hot/trials.csv").decode()))
    errors = [row["reason"].partition(":")[0] for row in rows if row["state"] == "failed"]
    assert errors == ["NonFiniteLossError"], "the failed trial is not retried"

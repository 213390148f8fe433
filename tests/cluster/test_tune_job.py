"""Compare trainings by the command, with data and studies in a real S3 server: kills on the way, failures, and what is left."""

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

# Ray Data reads deprecated settings of its own.
in_this_process = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning", "ignore::UserWarning"
)
ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "--network.stem_width 8 --network.widths 8 16 16 16 --network.depths 1 1 1 1 --data.image_px 64 --optim.batch 4 "
    "--optim.nominal_batch 4 --run.checkpoint_epochs 1 --cluster.compute_threads 1"
)
PATIENCE_S = 150
FIXED = ("5e-4", "0.937", "0.2", "0.05", "0.7", "0.3", "4", "3", "0.5", "0.1", "1", "0", "0", "0.015", "0.7", "0.4", "0")
"""Values of all dimensions of the recipe after the learning rate."""


@pytest.fixture(scope="module")
def bucket(s3: Callable[[], str]) -> str:
    url = s3()
    for name, count, seed in (("train", 24, 0), ("val", 9, 1)):
        pack_scenes(f"{url}/{name}", count, seed)
    return url


def command(bucket: str, flags: str, name: str) -> list[str]:
    where = f"--data.train {bucket}/train --data.val {bucket}/val --run.storage {bucket}/runs --run.name {name}"
    return [sys.executable, "jobs/tune.py", *flags.split(), *where.split(), *TINY.split()]


def own_ray() -> dict[str, str]:
    """Return an environment in which the job starts a Ray of its own."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"OMP_NUM_THREADS": "1"}


def finish(arguments: list[str], environment: dict[str, str]) -> tuple[dict, str]:
    """Run a job to its end and return its result and what it told."""
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def finished(study: str) -> dict[str, bytes]:
    """Return the manifest of the weights of each trial that came to its end, by the trial's name."""
    places = {name: f"{study}/trials/{name}/weights/manifest.json" for name in storage.list_names(f"{study}/trials")}
    return {name: storage.read_bytes(place) for name, place in places.items() if storage.exists(place)}


def wait_for(happened: Callable[[], object], job: subprocess.Popen) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert job.poll() is None and time.monotonic() < deadline, "the job ended, or did nothing for long"
        time.sleep(0.1)


def checkpointed(study: str) -> list[str]:
    """Return the trials that have a checkpoint and are not done."""
    names = set(storage.list_names(f"{study}/trials")) - finished(study).keys()
    return [name for name in names if storage.list_names(f"{study}/trials/{name}/checkpoints")]


def kill_a_trial(job: subprocess.Popen) -> None:
    """Kill one of the processes that train."""
    trial = next(p for p in psutil.Process(job.pid).children(recursive=True) if "ImplicitFunc" in " ".join(p.cmdline()))
    trial.send_signal(signal.SIGKILL)


def test_an_ablation_survives_a_killed_trial_and_a_killed_driver_and_trains_nothing_twice(
    bucket: str, ray_cluster: dict[str, str], tmp_path: Path
) -> None:
    arguments = command(bucket, "ablation nano --variants pr-add --seeds 2 --optim.epochs 12", "killed")
    study, told = f"{bucket}/runs/killed", tmp_path / "told"
    with told.open("wb") as log:
        job = subprocess.Popen(arguments, cwd=ROOT, env=own_ray(), stdout=log, stderr=log, start_new_session=True)
        wait_for(lambda: checkpointed(study), job)
        kill_a_trial(job)
        wait_for(lambda: b"event=trial_retried" in told.read_bytes(), job)
        wait_for(lambda: finished(study), job)
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
    before = finished(study)
    assert 0 < len(before) < 4
    result, again = finish(arguments, ray_cluster)
    assert (result["trials"], result["failed"]) == (4, 0)
    assert all(f"event=trial_started trial={name}" not in again for name in before)
    assert before.items() <= finished(study).items()
    assert again.count("event=trial_started") == 4 - len(before)
    rows = list(csv.DictReader(io.StringIO(storage.read_bytes(f"{study}/trials.csv").decode())))
    assert sorted((row["variant"], row["seed"]) for row in rows) == [(v, s) for v in ("baseline", "pr-add") for s in ("0", "1")]
    report = storage.read_bytes(result["report"]).decode()
    assert "larger than noise" in report and "+PR" in report
    assert {"differences.png", "priors.png", "report.csv", "report.json"} <= set(storage.list_names(study))


def tiny(bucket: str, name: str, epochs: int) -> TrainConfig:
    return TrainConfig(
        network=NetworkConfig(stem="reorg", stem_width=8, widths=(8, 16, 16, 16), depths=(1, 1, 1, 1), neck_depth=1, implicit=PLAIN),
        data=DataConfig(train=f"{bucket}/train", val=f"{bucket}/val", image_px=64),
        optim=OptimConfig(epochs=epochs, batch=4, nominal_batch=4),
        run=RunConfig(storage=f"{bucket}/runs", name=name),
    )


@in_this_process
@pytest.mark.usefixtures("ray_cluster")
def test_a_setting_that_fails_does_not_end_a_search(bucket: str) -> None:
    words = ("optim.lr=0.01,1e9", *(f"{word.partition('=')[0]}={value}" for word, value in zip(RECIPE[1:], FIXED, strict=True)))
    result = tune(SearchConfig(train=tiny(bucket, "hot", epochs=5), trials=5, search=words))
    assert (result["trials"], result["failed"]) == (2, 1), "two settings are all that there are, whatever was asked for"
    assert json.loads(storage.read_bytes(result["best"]))["optim"]["lr"] == 0.01
    rows = csv.DictReader(io.StringIO(storage.read_bytes(f"{bucket}/runs/hot/trials.csv").decode()))
    assert [row["reason"].partition(":")[0] for row in rows if row["state"] == "failed"] == ["NonFiniteLossError"], "and it is not retried"

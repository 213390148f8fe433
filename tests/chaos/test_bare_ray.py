"""Memory that Ray's own processes keep of each worker process of a training, without the project: the reason of `AGENT_KEPT_MB`."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from head import RAY, Head, running_head
from soak_usage import AGENT_KEPT_MB, NODE_DAEMONS, WORKER_LOGS, role_of

pytestmark = pytest.mark.chaos
FIRST, MEASURED = 3, 12
"""Trainings before the first measurement, and between the two: Ray keeps more of the first ones."""
TRAINING = """
import sys, time
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
ray.init()
scaling = ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1})
TorchTrainer(lambda: time.sleep(6), scaling_config=scaling, run_config=RunConfig(storage_path=sys.argv[1])).fit()
"""
"""Training of plain Ray Train, whose workers live long enough to report metrics."""


def memory_mb(head: Head) -> dict[str, float]:
    """Return the memory of the daemons of a cluster by role (MB)."""
    time.sleep(5)
    daemons = {role_of(" ".join(process.cmdline())): process for process in psutil.Process(head.process.pid).children(recursive=True)}
    return {role: daemons[role].memory_full_info().uss / 1e6 for role in NODE_DAEMONS}


def worker_processes(head: Head) -> int:
    return len(list(head.folder.glob(WORKER_LOGS.removeprefix("ray/"))))


def test_the_allowance_of_a_soak_is_what_plain_ray_train_keeps(tmp_path: Path, add_report: Callable) -> None:
    script = tmp_path / "training.py"
    script.write_text(TRAINING)
    with running_head() as head:

        def train(count: int) -> None:
            command = [RAY, "job", "submit", "--", "python", str(script), str(tmp_path / "runs")]
            for _ in range(count):
                done = subprocess.run(command, env=head.environment, capture_output=True, text=True, timeout=240)
                assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

        train(FIRST)
        before, workers = memory_mb(head), worker_processes(head)
        train(MEASURED)
        started = worker_processes(head) - workers
        kept_mb = {role: (after - before[role]) / started for role, after in memory_mb(head).items()}
    listed = ", ".join(f"{role} {mb:.3f}" for role, mb in kept_mb.items())
    add_report([f"plain Ray Train: MB that Ray keeps of each of {started} worker processes of {MEASURED} trainings: {listed}"])
    assert kept_mb["dashboard agent"] >= AGENT_KEPT_MB / 1.5, f"{listed}: the allowance is too large"

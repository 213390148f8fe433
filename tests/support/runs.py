"""Observe a training run from outside, by its files in storage, and judge its end."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from hosts import Process
from lab import CPUS_PER_WORKER, Lab, wait_until
from yolor_ray.io import manifest, storage
from yolor_ray.train.checkpoint.checkpoint import newest_checkpoint

TINY = (
    "--network.stem_width 8 --network.widths 8 16 16 16 --network.depths 1 1 1 1 --data.image_px 64 --optim.batch 4 "
    "--optim.nominal_batch 4 --run.validate_epochs 1000 --run.checkpoint_epochs 1000 --cluster.compute_threads 1"
)
IMAGES = 64
CHECKPOINT_STEPS = 25
FAULT_STEP = 50
"""The fault comes after a complete checkpoint of this step or a later one: no attempt may resume from an earlier one."""
END_TIMEOUT_S = 600
STEP_TIMEOUT_S = 180


@dataclass(frozen=True)
class Run:
    """A run by its name; `workers` is N, or MIN-MAX for as many as the cluster can schedule."""

    train: str
    val: str
    storage_url: str
    name: str
    workers: str
    epochs: int = 20
    outside_url: str = ""
    """URL of `storage_url` on this machine, if the hosts have another one."""

    @property
    def url(self) -> str:
        return f"{self.outside_url or self.storage_url}/{self.name}"

    @property
    def arguments(self) -> list[str]:
        urls = f"--data.train {self.train} --data.val {self.val} --run.storage {self.storage_url} --run.name {self.name}"
        size = f"--cluster.workers {self.workers} --cluster.cpus_per_worker {CPUS_PER_WORKER} --optim.epochs {self.epochs}"
        return ["nano", *TINY.split(), *urls.split(), *size.split(), "--run.checkpoint_steps", str(CHECKPOINT_STEPS)]

    def start(self, lab: Lab) -> Process:
        """Start or resume the run on the lab's head."""
        return lab.train(self.arguments, self.name)

    def undisturbed(self) -> "Run":
        """Return the same run under the name of its undisturbed twin."""
        return replace(self, name=f"undisturbed-{self.workers}-{self.epochs}")

    def checkpoint_step(self) -> int:
        """Return the step of the newest complete checkpoint, 0 without one."""
        folder = f"{self.url}/checkpoints"
        complete = [name for name in storage.list_names(folder) if manifest.is_published(f"{folder}/{name}")]
        return max((int(name.partition("-")[0]) for name in complete), default=0)

    def wait_for_fault_step(self, process: Process) -> None:
        """Wait for the complete checkpoint after which a fault may come."""
        self.wait_for(lambda: self.checkpoint_step() >= FAULT_STEP, f"a checkpoint of step {FAULT_STEP}", process)

    def wait_for_attempt(self, workers: int, attempt: int, process: Process) -> None:
        """Wait until that attempt, or a later one, takes steps with so many workers."""

        def takes_steps() -> bool:
            attempts = self.attempts()
            return len(attempts) >= attempt and attempts[-1]["workers"] == workers and attempts[-1]["downtime_s"] > 0

        self.wait_for(takes_steps, f"attempt {attempt} with {workers} workers", process)

    def wait_for(self, condition: Callable[[], bool], description: str, process: Process) -> None:
        def holds() -> bool:
            assert not process.ended, f"{self.name} ended with {process.wait(1)} before {description}: {process.output[-4000:]}"
            return condition()

        wait_until(holds, f"{self.name}: {description}", STEP_TIMEOUT_S)

    def attempts(self) -> list[dict]:
        return _read_rows(f"{self.url}/attempts.jsonl")

    def metrics(self) -> list[dict]:
        return _read_rows(f"{self.url}/metrics.jsonl")

    def leader(self, process: Process, lab: Lab) -> str:
        """Return the node of rank 0, from the job's log."""
        addresses = re.findall(r"ip=([\d.]+)\).*event=checkpoint step", process.output)
        assert addresses, process.output[-2000:]
        return next(name for name, host in lab.nodes.items() if host.address == addresses[-1])

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        checkpoint = newest_checkpoint(self.url)
        assert checkpoint is not None, f"{self.url} has no checkpoint"
        return checkpoint[0]


def _read_rows(url: str) -> list[dict]:
    return [json.loads(line) for line in storage.read_bytes(url).splitlines()] if storage.exists(url) else []


@dataclass(frozen=True)
class Outcome:
    """End of a disturbed run, compared with the same run undisturbed."""

    attempts: list[dict]
    records: set[int]
    equal: bool
    """True if network, average and momentum are equal bit for bit."""
    loss: float
    undisturbed_loss: float

    @property
    def lost_steps(self) -> int:
        return max((attempt["lost_steps"] for attempt in self.attempts), default=0)

    @property
    def downtimes_s(self) -> list[float]:
        return [attempt["downtime_s"] for attempt in self.attempts[1:]]

    @property
    def weights(self) -> str:
        """Description of the distance to the undisturbed weights."""
        if self.equal:
            return "equal bit for bit"
        return f"last loss {self.loss:.3f}, undisturbed {self.undisturbed_loss:.3f}"


def check_end(run: Run, process: Process) -> list[dict]:
    """Wait for the end and return the attempts.

    Each epoch must have taken every record once, and no attempt may have lost a complete checkpoint.
    """
    assert process.wait(END_TIMEOUT_S) == 0, process.output[-6000:]
    epochs, attempts = run.metrics(), run.attempts()
    assert [row["epoch"] for row in epochs] == list(range(1, run.epochs + 1))
    assert {row["records"] for row in epochs} == {IMAGES}
    assert [attempt["attempt"] for attempt in attempts] == list(range(1, len(attempts) + 1))
    assert all(attempt["downtime_s"] > 0 for attempt in attempts[1:]), attempts
    assert all(attempt["from_step"] >= FAULT_STEP for attempt in attempts[1:]), attempts
    return attempts


def finish(run: Run, process: Process, undisturbed: Run) -> Outcome:
    """Check a run's end and compare the run with its undisturbed twin."""
    attempts, epochs, expected = check_end(run, process), run.metrics(), undisturbed.tensors
    equal = run.tensors.keys() == expected.keys() and all(torch.equal(run.tensors[name], tensor) for name, tensor in expected.items())
    return Outcome(attempts, {row["records"] for row in epochs}, equal, epochs[-1]["loss"], undisturbed.metrics()[-1]["loss"])

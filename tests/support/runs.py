"""Look at a training run from outside, by the files that it leaves in storage, and judge how it came through."""

import json
import re
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
STEPS_AN_EPOCH = 16
CHECKPOINT_STEPS = 25
HIT_AT_STEP = 50
"""When a checkpoint of this step or a later one is whole, the fault comes: no life may go on from an earlier one."""
END_TIMEOUT_S = 600
STEP_TIMEOUT_S = 180


@dataclass(frozen=True)
class Run:
    """A run by its name; `workers` is N, or MIN-MAX for as many as there is room for."""

    train: str
    val: str
    storage_url: str
    name: str
    workers: str
    epochs: int = 20
    seen_at: str = ""
    """Where `storage_url` is found from outside, if that is elsewhere."""

    @property
    def url(self) -> str:
        return f"{self.seen_at or self.storage_url}/{self.name}"

    @property
    def arguments(self) -> list[str]:
        places = f"--data.train {self.train} --data.val {self.val} --run.storage {self.storage_url} --run.name {self.name}"
        size = f"--cluster.workers {self.workers} --cluster.cpus_per_worker {CPUS_PER_WORKER} --optim.epochs {self.epochs}"
        return ["nano", *TINY.split(), *places.split(), *size.split(), "--run.checkpoint_steps", str(CHECKPOINT_STEPS)]

    def start(self, lab: Lab) -> Process:
        """Start it on the lab's head, or go on with it."""
        return lab.train(self.arguments, self.name)

    def undisturbed(self) -> "Run":
        """Return the run that it would be if nothing happened."""
        return replace(self, name=f"undisturbed-{self.workers}-{self.epochs}")

    def step(self) -> int:
        """Return the step of the newest whole checkpoint, 0 without one."""
        folder = f"{self.url}/checkpoints"
        whole = [name for name in storage.list_names(folder) if manifest.is_published(f"{folder}/{name}")]
        return max((int(name.partition("-")[0]) for name in whole), default=0)

    def wait_for_hit(self, process: Process) -> None:
        """Wait until the checkpoint is whole that the run is to go on from at least, whatever hits it now."""
        self.wait_for(lambda: self.step() >= HIT_AT_STEP, f"step {HIT_AT_STEP}", process)

    def wait_for_life(self, workers: int, life: int, process: Process) -> None:
        """Wait until that life, or a later one, takes steps with so many workers."""

        def goes_on() -> bool:
            found = self.lives()
            return len(found) >= life and found[-1]["workers"] == workers and found[-1]["downtime_s"] > 0

        self.wait_for(goes_on, f"life {life} with {workers} workers", process)

    def wait_for(self, holds, what: str, process: Process) -> None:
        def held() -> bool:
            assert not process.ended, f"{self.name} ended with {process.wait(1)} before {what}: {process.output[-4000:]}"
            return holds()

        wait_until(held, f"{self.name}: {what}", STEP_TIMEOUT_S)

    def lives(self) -> list[dict]:
        return _rows(f"{self.url}/attempts.jsonl")

    def epochs_learned(self) -> list[dict]:
        return _rows(f"{self.url}/metrics.jsonl")

    def leader(self, process: Process, lab: Lab) -> str:
        """Return the node of the worker that writes the run's files, as the job's log tells."""
        found = re.findall(r"ip=([\d.]+)\).*event=checkpoint step", process.output)
        assert found, process.output[-2000:]
        return next(name for name, host in lab.nodes.items() if host.address == found[-1])

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        found = newest_checkpoint(self.url)
        assert found is not None, f"{self.url} has no checkpoint"
        return found[0]


def _rows(url: str) -> list[dict]:
    return [json.loads(line) for line in storage.read_bytes(url).splitlines()] if storage.exists(url) else []


@dataclass(frozen=True)
class Outcome:
    """What came of a run that was disturbed, compared with the same run undisturbed."""

    lives: list[dict]
    records: set[int]
    equal: bool
    """Whether network, average and momentum are the same, bit for bit."""
    loss: float
    loss_undisturbed: float

    @property
    def lost_steps(self) -> int:
        return max((life["lost_steps"] for life in self.lives), default=0)

    @property
    def outages_s(self) -> list[float]:
        return [life["downtime_s"] for life in self.lives[1:]]

    @property
    def weights(self) -> str:
        """Say how near its weights came."""
        if self.equal:
            return "equal bit for bit"
        return f"last loss {self.loss:.3f}, undisturbed {self.loss_undisturbed:.3f}"


def check_end(run: Run, process: Process) -> list[dict]:
    """Wait for the end, assert that an epoch took each record once and that no life lost a whole checkpoint; return the lives."""
    assert process.wait(END_TIMEOUT_S) == 0, process.output[-6000:]
    epochs, lives = run.epochs_learned(), run.lives()
    assert [row["epoch"] for row in epochs] == list(range(1, run.epochs + 1))
    assert {row["records"] for row in epochs} == {IMAGES}
    assert [life["life"] for life in lives] == list(range(1, len(lives) + 1))
    assert all(life["downtime_s"] > 0 for life in lives[1:]), lives
    assert all(life["from_step"] >= HIT_AT_STEP for life in lives[1:]), lives
    return lives


def finish(run: Run, process: Process, undisturbed: Run) -> Outcome:
    """Check a run's end and compare it with the same run undisturbed."""
    lives, epochs, expected = check_end(run, process), run.epochs_learned(), undisturbed.tensors
    equal = run.tensors.keys() == expected.keys() and all(torch.equal(run.tensors[name], tensor) for name, tensor in expected.items())
    return Outcome(lives, {row["records"] for row in epochs}, equal, epochs[-1]["loss"], undisturbed.epochs_learned()[-1]["loss"])

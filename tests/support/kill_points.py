"""Kill training at chosen changes that a checkpoint makes to a file system: `python tests/support/kill_points.py FOLDER POINT…`.

The program prints a JSON object: the changes of an undisturbed run, and a result for each POINT (from 1). A result says whether the
run was killed there, the step of the resume, and whether the last checkpoint equals the undisturbed run's bit for bit. Each training
runs in a forked process, which dies at once and without any clean-up.
"""

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from undrawn import blank_pictures
from yolor_ray.config import ClusterConfig, DataConfig, NetworkConfig, OptimConfig, RunConfig, TrainConfig
from yolor_ray.io import storage
from yolor_ray.train.checkpoint.async_writer import AsyncCheckpointer
from yolor_ray.train.checkpoint.attempts import read_attempts
from yolor_ray.train.checkpoint.checkpoint import newest_checkpoint
from yolor_ray.train.run import train

KILLED = 137


class Changes:
    """Count of the changes that the checkpoint thread makes; the process dies before a chosen change."""

    def __init__(self, fatal: int) -> None:
        self.count, self._fatal = 0, fatal
        self.names: list[str] = []

    def before(self, name: str, change: Callable) -> Callable:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread().name.startswith("yolor-checkpoint"):
                self.count += 1
                self.names.append(name)
                if self.count == self._fatal:
                    os._exit(KILLED)
            return change(*args, **kwargs)

        return counted


def make_config(folder: str, name: str) -> TrainConfig:
    return TrainConfig(
        network=NetworkConfig(stem="reorg", stem_width=8, widths=(8, 16, 16, 16), depths=(1, 1, 1, 1), neck_depth=1),
        data=DataConfig(train="scenes:12", val="scenes:4", image_px=64),
        optim=OptimConfig(epochs=3, batch=4, nominal_batch=4),
        cluster=ClusterConfig(compute_threads=1),
        run=RunConfig(storage=folder, name=name, validate_epochs=1, checkpoint_epochs=100, checkpoint_steps=2),
    )


def train_in_a_fork(config: TrainConfig, fatal: int) -> int:
    """Train in a forked process and return its exit status; a file beside the run lists the process's changes."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    torch.set_num_threads(1)
    changes = Changes(fatal)
    Path.replace = changes.before("rename", Path.replace)  # type: ignore[method-assign]
    storage._remove = changes.before("remove", storage._remove)
    save = AsyncCheckpointer.save

    def save_and_wait(self: AsyncCheckpointer, *args: Any, **kwargs: Any) -> None:
        save(self, *args, **kwargs)
        self._wait_for_write()

    # A checkpoint is due only after the previous one is written. Every run has to make the same changes, however long a write takes.
    AsyncCheckpointer.save = save_and_wait  # type: ignore[method-assign]
    status = 1
    try:
        train(config)
        Path(config.run.storage, f"{config.run.name}.changes").write_text(json.dumps(changes.names))
        status = 0
    finally:
        # The forked process must not continue with the code of its parent.
        traceback.print_exc()
        os._exit(status)


def has_equal_checkpoint(run: str, expected_run: str) -> bool:
    (tensors, state), (expected, expected_state) = newest_checkpoint(run), newest_checkpoint(expected_run)
    equal = tensors.keys() == expected.keys() and all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())
    return equal and state["step"] == expected_state["step"]


def kill_at_point(folder: str, point: int) -> dict[str, Any]:
    """Kill a run at a point, resume it, and compare its end with the run `undisturbed`."""
    config = make_config(folder, f"killed-{point}")
    status = train_in_a_fork(config, fatal=point)
    run = f"{folder}/{config.run.name}"
    checkpoint = newest_checkpoint(run)
    resumed_status = train_in_a_fork(config, fatal=0)
    rows = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return {
        "killed": status == KILLED,
        "finished": resumed_status == 0,
        "complete_step": checkpoint[1]["step"] if checkpoint else 0,
        "from_step": read_attempts(run)[-1].from_step,
        "records": [row["records"] for row in rows],
        "equal": has_equal_checkpoint(run, f"{folder}/undisturbed"),
    }


def main(folder: str, points: list[int]) -> dict[str, Any]:
    assert train_in_a_fork(make_config(folder, "undisturbed"), fatal=0) == 0
    changes = json.loads(Path(folder, "undisturbed.changes").read_text())
    return {"changes": changes, "points": {point: kill_at_point(folder, point) for point in points}}


if __name__ == "__main__":
    with blank_pictures():
        sys.stdout.write(json.dumps(main(sys.argv[1], [int(point) for point in sys.argv[2:]])) + "\n")

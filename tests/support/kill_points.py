"""Kill trainings at chosen changes that their checkpoints make to a file system: `python tests/support/kill_points.py FOLDER POINT…`.

Prints a JSON object: how many such changes an undisturbed run makes, and for each POINT (from 1) whether the run was killed
there, from which step it went on, and whether its last checkpoint equals the undisturbed run's bit for bit. Each training is
a forked process of its own and dies at once, without any clean-up.
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

from yolor_ray.config import ClusterConfig, DataConfig, NetworkConfig, OptimConfig, RunConfig, TrainConfig
from yolor_ray.io import storage
from yolor_ray.train.checkpoint.async_writer import AsyncCheckpointer
from yolor_ray.train.checkpoint.attempts import read_attempts
from yolor_ray.train.checkpoint.checkpoint import newest_checkpoint
from yolor_ray.train.run import train

KILLED = 137


class Changes:
    """Count what a thread that writes checkpoints changes, and die before a chosen one."""

    def __init__(self, fatal: int) -> None:
        self.count, self._fatal = 0, fatal
        self.kinds: list[str] = []

    def before(self, kind: str, change: Callable) -> Callable:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread().name.startswith("yolor-checkpoint"):
                self.count += 1
                self.kinds.append(kind)
                if self.count == self._fatal:
                    os._exit(KILLED)
            return change(*args, **kwargs)

        return counted


def run_of(folder: str, name: str) -> TrainConfig:
    return TrainConfig(
        network=NetworkConfig(stem="reorg", stem_width=8, widths=(8, 16, 16, 16), depths=(1, 1, 1, 1), neck_depth=1),
        data=DataConfig(train="scenes:12", val="scenes:4", image_px=64),
        optim=OptimConfig(epochs=3, batch=4, nominal_batch=4),
        cluster=ClusterConfig(compute_threads=1),
        run=RunConfig(storage=folder, name=name, validate_epochs=1, checkpoint_epochs=100, checkpoint_steps=2),
    )


def train_in_a_fork(config: TrainConfig, fatal: int) -> int:
    """Train in a process of its own and return its exit status; what it changed is told in a file beside the run."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    torch.set_num_threads(1)
    changes = Changes(fatal)
    Path.replace = changes.before("rename", Path.replace)  # type: ignore[method-assign]
    storage._remove = changes.before("remove", storage._remove)
    save = AsyncCheckpointer.save

    def save_and_wait(self: AsyncCheckpointer, *args: Any) -> None:
        save(self, *args)
        self._settle()

    # Whether a checkpoint is due depends on how long the last one takes; here every run is to make the same changes.
    AsyncCheckpointer.save = save_and_wait  # type: ignore[method-assign]
    status = 1
    try:
        train(config)
        Path(config.run.storage, f"{config.run.name}.changes").write_text(json.dumps(changes.kinds))
        status = 0
    finally:
        # The fork must not come back into what its parent goes on with.
        traceback.print_exc()
        os._exit(status)


def same(one: str, other: str) -> bool:
    (found, state), (expected, expected_state) = newest_checkpoint(one), newest_checkpoint(other)
    equal = found.keys() == expected.keys() and all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    return equal and state["step"] == expected_state["step"]


def main(folder: str, points: list[int]) -> dict[str, Any]:
    whole = run_of(folder, "whole")
    assert train_in_a_fork(whole, fatal=0) == 0
    found = {}
    for point in points:
        config = run_of(folder, f"killed-{point}")
        status = train_in_a_fork(config, fatal=point)
        run = f"{folder}/{config.run.name}"
        left = newest_checkpoint(run)
        whole_step = left[1]["step"] if left else 0
        again = train_in_a_fork(config, fatal=0)
        rows = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
        found[point] = {
            "killed": status == KILLED,
            "finished": again == 0,
            "whole_step": whole_step,
            "from_step": read_attempts(run)[-1].from_step,
            "records": [row["records"] for row in rows],
            "same": same(run, f"{folder}/whole"),
        }
    return {"changes": json.loads(Path(folder, "whole.changes").read_text()), "points": found}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1], [int(point) for point in sys.argv[2:]])) + "\n")

"""Log a run to Weights & Biases, or without a network to the folder that WANDB_DIR names."""

import os
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yolor_ray.config import TrainConfig
from yolor_ray.errors import ConfigError
from yolor_ray.io.redact import redact
from yolor_ray.train.loggers.epoch_logger import Outcome, parameters

PROJECT = "yolor_ray"
ARTIFACT_TYPES = {"report": "report", "weights": "model"}


class WandbLogger:
    """A run of W&B; it goes on where an earlier job of the same training ended."""

    def __init__(self, config: TrainConfig, run_id: str) -> None:
        """Create the run, or continue the run of this id; an empty id creates one.

        Raises:
            ConfigError: the server does not answer, or refuses the key.

        """
        # No messages to the makers of W&B.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self.id = run_id or secrets.token_hex(6)
        # Command line, environment, host, code and console may hold secrets, and the job's process is not the one that trains on a cluster.
        settings = wandb.Settings(
            console="off", disable_code=True, disable_git=True, save_code=False, x_disable_meta=True, x_disable_stats=True
        )
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=redact(config.run.name),
                id=self.id,
                resume="allow",
                settings=settings,
            )
        except wandb.Error as error:
            expected = "expected WANDB_API_KEY, or WANDB_MODE=offline"
            raise ConfigError(f"run.loggers: wandb: found no way to create or continue run {self.id}: {error}; {expected}") from error
        self._run.config.update(parameters(config), allow_val_change=True)
        # Offline, the folder of each job has all epochs.
        self._next_epoch = self._run.starting_step
        self._name = re.sub(r"[^\w.-]", "-", redact(config.run.name))

    def log_epochs(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log new epochs, each as a step."""
        for row in rows:
            if row["epoch"] >= self._next_epoch:
                self._run.log(dict(row), step=row["epoch"])
                self._next_epoch = row["epoch"] + 1

    def finish(self, outcome: Outcome, files: Path) -> None:
        """Log the folders as artifacts, and end the run."""
        import wandb

        for folder in sorted(files.iterdir()):
            artifact = wandb.Artifact(f"{self._name}-{folder.name}", type=ARTIFACT_TYPES[folder.name])
            artifact.add_dir(str(folder))
            self._run.log_artifact(artifact)
        self._run.finish(exit_code=0 if outcome is Outcome.FINISHED else 1)

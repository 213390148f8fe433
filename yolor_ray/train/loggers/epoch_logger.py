"""Define the interface of a logger, and the ends of a training that a logger tells apart."""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from yolor_ray.config import TrainConfig
from yolor_ray.config.dotted import flatten
from yolor_ray.io.redact import redact


class Outcome(enum.Enum):
    """End of a job that trains a run."""

    FINISHED = "finished"
    STOPPED = "stopped"
    """A stop signal ended the job; the same command goes on."""
    FAILED = "failed"


class EpochLogger(Protocol):
    """A logger of one run."""

    id: str
    """Id of the run on the logger's server; empty without a server."""

    def log_epochs(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log the epochs that are not logged yet; `rows` has all epochs of the run so far."""

    def finish(self, outcome: Outcome, files: Path) -> None:
        """End the logging; `files` has the folders `report` and `weights` of a finished run, and is empty for others."""


def parameters(config: TrainConfig) -> dict[str, Any]:
    """Return the settings of a run by dotted name, without credentials; several values as text, as on the command line."""
    # A word of the environment's secrets may stand in a path; `lock_settings` has refused credentials in URLs.
    values = flatten(asdict(config))
    texts = {name: " ".join(map(str, value)) if isinstance(value, tuple) else value for name, value in values.items()}
    return {name: redact(value) if isinstance(value, str) else value for name, value in texts.items()}

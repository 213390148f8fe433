"""Define the knobs of the benchmarks; the subcommand names the benchmark."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from yolor_ray.config import Train
from yolor_ray.errors import ConfigError
from yolor_ray.presets import DESCRIPTIONS, PRESETS

if TYPE_CHECKING:
    Preset = Train
else:
    Preset = Annotated[tyro.extras.subcommand_type_from_defaults(PRESETS, DESCRIPTIONS, prefix_names=False), tyro.conf.arg(name="")]


@dataclass(frozen=True)
class Ingest:
    """Compare the ingest alone, the training step alone and both together, in turns."""

    train: Preset = PRESETS["nano"]
    """The run to measure: a preset, with the flags of `jobs/train.py`."""
    rounds: int = 3
    """Times that the three are measured in turn, 1 or more."""
    steps: int = 0
    """Batches per measure and worker, 0 or more; 0 takes the whole epoch."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.rounds < 1 or self.steps < 0:
            raise ConfigError(f"rounds, steps: found {self.rounds}, {self.steps}, expected 1 or more and 0 or more")
        low, high = self.train.cluster.worker_range
        if low != high:
            raise ConfigError(f"cluster.workers: found {self.train.cluster.workers!r}, expected one number: a benchmark keeps its workers")


BENCHMARKS = {"ingest": Ingest()}
BENCHMARK_DESCRIPTIONS = {"ingest": "Images/s of the ingest alone, of the training step alone, and of both together."}

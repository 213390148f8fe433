"""Define the settings of the benchmarks; the subcommand names the benchmark."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from yolor_ray.config import TrainConfig
from yolor_ray.config.network import Precision
from yolor_ray.config.presets import DESCRIPTIONS, PRESETS
from yolor_ray.errors import ConfigError, check

if TYPE_CHECKING:
    Preset = TrainConfig
    PresetName = str
else:
    PresetName = Literal[tuple(PRESETS)]
    Preset = Annotated[tyro.extras.subcommand_type_from_defaults(PRESETS, DESCRIPTIONS, prefix_names=False), tyro.conf.arg(name="")]


@dataclass(frozen=True)
class IngestConfig:
    """Benchmark of the ingest alone, of the training step alone, and of both together, interleaved."""

    train: Preset = PRESETS["nano"]
    """The run to measure: a preset, with the flags of `jobs/train.py`."""
    rounds: int = 3
    """Rounds, 1 or more; each round measures all three."""
    steps: int = 0
    """Batches per measurement and worker, 0 or more; 0 takes the whole epoch."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.rounds < 1 or self.steps < 0:
            raise ConfigError(f"rounds, steps: found {self.rounds}, {self.steps}, expected 1 or more and 0 or more")
        low, high = self.train.cluster.worker_range
        if low != high:
            raise ConfigError(f"cluster.workers: found {self.train.cluster.workers!r}, expected one number: a benchmark keeps its workers")


@dataclass(frozen=True)
class InferenceConfig:
    """Benchmark of the served network and of the plain, unfolded network that the ancestor runs, interleaved."""

    weights: str = ""
    """URL of a weights folder that is not folded; empty measures a preset's network with random weights."""
    preset: PresetName = "nano"
    """Preset of the network to measure when there are no weights."""
    image_px: int = 0
    """Side of the network input, pixels, a multiple of the coarsest stride; 0 takes the size of the weights or of the preset."""
    batches: tuple[int, ...] = (1, 8)
    """Images per forward pass, each 1 or more; all batch sizes are measured."""
    rounds: int = 5
    """Rounds, 1 or more; each round measures all forms of the network."""
    compute_threads: int = 0
    """Compute threads; 0 takes every core."""
    precision: Precision = "float32"
    """Number format of the served network's computation; all other forms compute in float32."""
    gpu: bool = False
    """Measure on the GPU."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check(len(self.batches) > 0 and min(self.batches) >= 1, "batches", self.batches, "one number or more, each 1 or more")
        for name, minimum in (("rounds", 1), ("compute_threads", 0), ("image_px", 0)):
            check(getattr(self, name) >= minimum, name, getattr(self, name), f"{minimum} or more")


BENCHMARKS = {"ingest": IngestConfig(), "inference": InferenceConfig()}
BENCHMARK_DESCRIPTIONS = {
    "ingest": "Images/s of the ingest alone, of the training step alone, and of both together.",
    "inference": "Latency of the served network and of the plain, unfolded one, as fractions of this machine's peak.",
}

"""Define the settings of the benchmarks; the subcommand names the benchmark."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from yolor_ray.config import OptimConfig, RunConfig, TrainConfig, WorkersConfig
from yolor_ray.config.network import Precision
from yolor_ray.config.presets import PRESETS
from yolor_ray.errors import ConfigError, check

if TYPE_CHECKING:
    PresetName = str
else:
    PresetName = Literal[tuple(PRESETS)]
IngestSource = Literal["auto", "direct", "object_store"]


@dataclass(frozen=True)
class IngestConfig:
    """Benchmark of the ingest by plain reading, of the ingest, of the training step, and of the last two together, interleaved."""

    train: Annotated[TrainConfig, tyro.conf.arg(name="")] = PRESETS["nano"]
    """The run to measure: a preset, with the flags of `jobs/train.py`."""
    rounds: int = 3
    """Rounds, 1 or more; each round measures all of them."""
    steps: int = 0
    """Batches per measurement and worker, 0 or more; 0 takes the whole epoch."""
    source: IngestSource = "auto"
    """Path of the row groups: each worker reads storage (direct), or Ray keeps them in its object store; auto = as in training."""

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


@dataclass(frozen=True)
class ScoringConfig:
    """Benchmark of the COCO scorer and of pycocotools on the same synthetic detections, in turns."""

    images: int = 5000
    """Images, 1 or more."""
    detections: int = 100
    """Detections per image, 1 or more."""
    classes: int = 80
    """Classes, 1 or more."""
    rounds: int = 1
    """Rounds, 1 or more; each round runs both scorers."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("images", "detections", "classes", "rounds"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")


@dataclass(frozen=True)
class ScaleConfig:
    """Benchmark of each part of a run up to its first step, over datasets of growing numbers of tiny images."""

    images: tuple[int, ...] = (1_000, 10_000, 100_000)
    """Numbers of images, each 16 or more and all different; two or more give exponents."""

    def __post_init__(self) -> None:
        """Check ranges."""
        valid = len(self.images) > 0 and min(self.images) >= 16 and len(set(self.images)) == len(self.images)
        check(valid, "images", self.images, "one number or more, each 16 or more and all different")


@dataclass(frozen=True)
class PredictionConfig:
    """Benchmark of `yolor-ray predict` with workers against the same engine in a loop of one process, in turns."""

    weights: str = "builtin"
    """URL of a weights folder; `builtin` = the starting weights of this package."""
    images: str = "scenes:256"
    """URL of a folder of images, a list or a packed dataset; `scenes:N` makes N built-in scenes."""
    passes: int = 8
    """Times that all images are predicted in a turn, 1 or more."""
    rounds: int = 3
    """Rounds, 1 or more; each round measures both."""
    batch: int = 16
    """Images per forward pass, 1 or more."""
    engine: Literal["fastest", "torch", "onnxruntime", "openvino"] = "fastest"
    """Engine that executes the network, as in `yolor-ray predict`."""
    cluster: WorkersConfig = field(default_factory=lambda: WorkersConfig(workers="2"))
    """Workers of the prediction."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("weights", "images"):
            check(bool(getattr(self, name)), name, getattr(self, name), "a URL")
        for name in ("passes", "rounds", "batch"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        low, high = self.cluster.worker_range
        check(low == high > 0, "cluster.workers", self.cluster.workers, "one number, 1 or more: a benchmark keeps its workers")


@dataclass(frozen=True)
class HttpConfig:
    """Benchmark of a running service over HTTP: closed loops of some clients, then open loops at multiples of their goodput."""

    url: str = "http://127.0.0.1:8000"
    """Address of the service, with its prefix; a key for it comes from the environment variable YOLOR_API_KEY."""
    images: str = "scenes:64"
    """URL of a folder of images, a list or a packed dataset; `scenes:N` makes N built-in scenes. At most 256 images are sent, in turn."""
    query: str = ""
    """Query of each request, such as `?masks=false`."""
    clients: tuple[int, ...] = (1, 8, 32)
    """Clients of the closed loops, each 1 or more; a client sends its next request after its answer."""
    loads: tuple[float, ...] = (0.5, 10.0)
    """Rates of the open loops as multiples of the highest goodput of the closed loops, each more than 0."""
    seconds: float = 20.0
    """Time of each loop, seconds, more than 0."""
    plain_weights: str = ""
    """URL of weights that Starlette and uvicorn alone serve for comparison, in turns with the service: those of the service. Empty compares
    with nothing."""
    compute_threads: int = 1
    """Compute threads of that server, 1 or more: those of the service."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check(self.url.startswith(("http://", "https://")), "url", self.url, "http:// or https:// and a host")
        check(self.query == "" or self.query.startswith("?"), "query", self.query, "nothing, or ? and parameters")
        check(len(self.clients) > 0 and min(self.clients) >= 1, "clients", self.clients, "one number or more, each 1 or more")
        check(all(0 < load < math.inf for load in self.loads), "loads", self.loads, "numbers of more than 0")
        check(0 < self.seconds < math.inf, "seconds", self.seconds, "more than 0")
        check(self.compute_threads >= 1, "compute_threads", self.compute_threads, "1 or more")


@dataclass(frozen=True)
class LearningConfig:
    """Benchmark of learning: AP by minute of training within a budget of minutes on one core or one GPU, over several seeds."""

    train: Annotated[TrainConfig, tyro.conf.arg(name="")]
    """The run to measure: a preset, with the flags of `jobs/train.py`; run.name names the benchmark. cluster.compute_threads is also the
    number of cores, 0 for all cores, unless there is a GPU."""
    minutes: float = 10.0
    """Training time of each seed, minutes, more than 0; validation is not counted. The number of epochs follows from the measured speed."""
    seeds: int = 3
    """Repeats, with run.seed and the seeds after it; 1 or more, and 2 or more for an interval. A later larger number adds repeats."""
    compare: str = ""
    """URL of a CSV file with others' curves to draw: columns minute and AP, and optionally AP50, curve, name, set, image_px, seed.
    Empty compares with nothing."""
    curve: str = "trained"
    """Name of this curve in table and picture."""

    def __post_init__(self) -> None:
        """Check ranges, and refuse settings that the benchmark chooses."""
        check(0 < self.minutes < math.inf, "minutes", self.minutes, "more than 0")
        check(self.seeds >= 1, "seeds", self.seeds, "1 or more")
        train = self.train
        check(train.cluster.worker_range == (0, 0), "cluster.workers", train.cluster.workers, "0: the budget is that of one process")
        chosen = f"{OptimConfig.epochs}: the benchmark chooses the epochs that fill --minutes"
        check(train.optim.epochs == OptimConfig.epochs, "optim.epochs", train.optim.epochs, chosen)
        chosen = f"{RunConfig.validate_epochs}: the benchmark chooses the epochs between validations"
        check(train.run.validate_epochs == RunConfig.validate_epochs, "run.validate_epochs", train.run.validate_epochs, chosen)


def _make_learning(preset: TrainConfig) -> LearningConfig:
    """Return the benchmark of a preset on one core, with the preset's name as the name of the curve."""
    train = replace(
        preset,
        optim=replace(preset.optim, epochs=OptimConfig.epochs),
        cluster=replace(preset.cluster, workers="0", compute_threads=1),
        run=replace(preset.run, name="learning", validate_epochs=RunConfig.validate_epochs),
    )
    curve = next((name for name, known in PRESETS.items() if known == preset), LearningConfig.curve)
    return LearningConfig(train=train, curve=curve)


PRESET_BENCHMARKS: dict[str, Callable[[TrainConfig], IngestConfig | LearningConfig]] = {
    "ingest": lambda preset: IngestConfig(train=preset),
    "learning": _make_learning,
}
"""Factories of the benchmarks whose name a preset's name follows, with the flags of both after it."""
BENCHMARKS = {
    "ingest": IngestConfig(),
    "inference": InferenceConfig(),
    "learning": _make_learning(PRESETS["nano"]),
    "scoring": ScoringConfig(),
    "scale": ScaleConfig(),
    "predict": PredictionConfig(),
    "http": HttpConfig(),
}
BENCHMARK_DESCRIPTIONS = {
    "ingest": "Images/s of the ingest by plain reading, of the ingest, of the training step, and of the last two together.",
    "inference": "Latency of the served network and of the plain, unfolded one, as fractions of this machine's peak.",
    "learning": "AP by minute of training on one core or one GPU, over several seeds, beside others' curves.",
    "predict": "Images/s of predict with workers and of the engine in a loop, time to the first result, and memory.",
    "http": "Goodput, latency and refusals of a running service, by clients and at multiples of its full load.",
    "scoring": "Seconds of the COCO scorer and of pycocotools on the same synthetic detections.",
    "scale": "Seconds and MB of packing, opening, planning and the first step, by the number of images.",
}

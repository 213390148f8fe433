"""Hold the models of a replica: one, or two while a new version is compared with the one before."""

import contextlib
import queue
import threading
from dataclasses import dataclass
from enum import Enum
from typing import Any

from yolor_ray.inference.views import View
from yolor_ray.model.weights import WeightsInfo
from yolor_ray.serve.batcher import Batcher
from yolor_ray.serve.engine import DetectOptions, Engine, TimedDetections

MAX_SAMPLES = 4
"""Images that wait for the comparison of two versions; of further ones none is kept, so that a comparison never holds up requests."""

MAX_FAILED_BATCHES = 3
"""Consecutive failed batches after which an engine is broken."""

ImageBatcher = Batcher[tuple[View, DetectOptions], TimedDetections]


@dataclass
class Health:
    """State of an engine after its last batches."""

    failed_batches: int = 0
    """Batches that failed in a row."""

    @property
    def is_broken(self) -> bool:
        """Return True if the last MAX_FAILED_BATCHES batches failed."""
        return self.failed_batches >= MAX_FAILED_BATCHES


@dataclass(frozen=True, eq=False)
class Model:
    """Engine of one version, and the queue of its images."""

    engine: Engine
    batcher: ImageBatcher
    health: Health
    release: str = ""
    """Name of the version in the release folder; empty without one."""

    @property
    def info(self) -> WeightsInfo:
        """Return the description of the weights."""
        return self.engine.info

    @property
    def identity(self) -> dict[str, str]:
        """Return the field `model` of an answer."""
        release = {"release": self.release} if self.release else {}
        return {"name": self.info.name, "version": self.info.version, **release}

    @property
    def label(self) -> str:
        """Return the version as metrics name it."""
        return self.release or self.info.version


class Stage(Enum):
    """Stage of a new version."""

    SHADOW = "shadow"
    SHARE = "share"
    ALL = "all"


@dataclass(frozen=True)
class Traffic:
    """Models and the share of the requests that the new one answers; always replaced as a whole, so that a reader never sees a half."""

    stable: Model
    candidate: Model | None = None
    share: float = 0.0

    @property
    def stage(self) -> Stage:
        """Return the stage of the new model."""
        return {0.0: Stage.SHADOW, 1.0: Stage.ALL}.get(self.share, Stage.SHARE)

    @property
    def current(self) -> Model:
        """Return the model that answers all requests, or the larger share of them."""
        return self.candidate if self.candidate and self.share == 1 else self.stable


@dataclass(frozen=True)
class SampledImage:
    """Image of an answered request."""

    data: bytes
    options: DetectOptions


class Models:
    """Models of a replica. Requests choose on the event loop, and the thread of the rollout changes the choice."""

    def __init__(self, model: Model) -> None:
        self._traffic = Traffic(model)
        self._lock = threading.Lock()
        self._turn = 0.0
        self._samples: queue.Queue[SampledImage | None] = queue.Queue(MAX_SAMPLES)
        self.failure: str | None = None
        """Failure of the last candidate in a request."""

    @property
    def stable(self) -> Model:
        """Return the model that has proved itself."""
        return self._traffic.stable

    @property
    def candidate(self) -> Model | None:
        """Return the model under comparison."""
        return self._traffic.candidate

    @property
    def current(self) -> Model:
        """Return the model that answers all requests, or the larger share of them."""
        return self._traffic.current

    @property
    def summary(self) -> dict[str, Any]:
        """Return the release that answers, and the model under comparison with its stage, for the list of models."""
        traffic = self._traffic
        release = {"release": traffic.current.release} if traffic.current.release else {}
        if traffic.candidate is None:
            return release
        names = {"version": traffic.candidate.info.version, "release": traffic.candidate.release, "before": traffic.stable.release}
        return {**release, "candidate": {**names, "stage": traffic.stage.value}}

    @property
    def waiting(self) -> int:
        """Return the number of images that wait for a batch."""
        traffic = self._traffic
        return traffic.stable.batcher.waiting + (traffic.candidate.batcher.waiting if traffic.candidate else 0)

    @property
    def wants_sample(self) -> bool:
        """Return True if the comparison of two versions has time for another image."""
        return self._traffic.candidate is not None and not self._samples.full()

    def choose(self, release: str = "") -> Model | None:
        """Return the model for the next request: that of a release, None if it is not loaded, or the one whose turn it is."""
        traffic = self._traffic
        if release:
            return next((model for model in (traffic.stable, traffic.candidate) if model and model.release == release), None)
        self._turn += traffic.share
        if traffic.candidate is None or self._turn < 1:
            return traffic.stable
        self._turn -= 1
        return traffic.candidate

    def start(self, candidate: Model) -> None:
        """Begin the comparison of a candidate, which answers no request yet."""
        with self._lock:
            self.failure = None
            self._turn = 0.0
            self._traffic = Traffic(self._traffic.stable, candidate)

    def give(self, candidate: Model, share: float) -> None:
        """Give a candidate a share of the requests, unless it has been dropped."""
        with self._lock:
            if self._traffic.candidate is candidate:
                self._traffic = Traffic(self._traffic.stable, candidate, share)

    def replace(self, model: Model) -> None:
        """Give all requests to a model, and forget the others; requests that have begun end with the model that they began with."""
        with self._lock:
            self._traffic = Traffic(model)
        self._forget_samples()

    def drop(self, candidate: Model, failure: str | None = None) -> None:
        """Take a candidate's requests away at once, and remember its failure."""
        with self._lock:
            if self._traffic.candidate is candidate:
                self.failure = failure
                self._traffic = Traffic(self._traffic.stable)
        self._forget_samples()

    def sample(self, data: bytes, options: DetectOptions) -> None:
        """Keep an image for the comparison, unless others have come before it."""
        with contextlib.suppress(queue.Full):
            self._samples.put_nowait(SampledImage(data, options))

    def next_sample(self, wait_s: float) -> SampledImage | None:
        """Return the next image for the comparison; None if none comes in time."""
        try:
            return self._samples.get(timeout=wait_s)
        except queue.Empty:
            return None

    def wake(self) -> None:
        """End the wait for the next image."""
        with contextlib.suppress(queue.Full):
            self._samples.put_nowait(None)

    def _forget_samples(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._samples.get_nowait()

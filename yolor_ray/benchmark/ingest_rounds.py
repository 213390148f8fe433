"""Measure a training worker in rounds: the ingest alone, the step alone, and both together as in training.

The three take turns with one network, one loader and one plan, so that a slow moment of the machine meets them all.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolor_ray.data.loading.epoch_plan import steps_of
from yolor_ray.data.loading.loader import Batch, Loader
from yolor_ray.report.provenance import machine
from yolor_ray.train.context import Report, TrainContext, make_learner, make_loader, targets_of, windows_of
from yolor_ray.train.distributed import DistContext
from yolor_ray.train.learner import Learner
from yolor_ray.train.losses.assign import Targets

KEPT_BATCHES = 8
"""Batches that the step alone learns from again and again."""


@dataclass
class Bench:
    """Hold what the measures share."""

    context: TrainContext
    dist_context: DistContext
    learner: Learner
    loader: Loader
    limit: int
    """Most batches per measure; 0 for the whole epoch."""
    epochs: int = 0
    """Epochs begun so far."""
    first_batch_s: float = 0.0
    """From the beginning of the newest epoch to its first batch, planning included."""
    steps: int = 0
    """Batches of an epoch."""
    kept: list[tuple[Tensor, Targets]] = field(default_factory=list)

    def epoch(self) -> Iterator[Batch]:
        """Begin another epoch and yield its batches."""
        started = time.perf_counter()
        windows = windows_of(self.context, self.epochs)
        nothing_seen = np.zeros(self.context.train.images, bool)
        dist_context, batch_size = self.dist_context, self.context.config.optim.batch
        steps = steps_of(windows, nothing_seen, rank=dist_context.rank, world_size=dist_context.world_size, batch=batch_size)[
            : self.limit or None
        ]
        self.steps, self.epochs = len(steps), self.epochs + 1
        for number, batch in enumerate(self.loader.epoch(windows, steps, epoch=self.epochs - 1)):
            if number == 0:
                self.first_batch_s = time.perf_counter() - started
            yield batch

    def keep(self) -> int:
        """Learn from an epoch as a warm-up and keep copies of its first batches."""
        return self._learn(self._copied(self.epoch()))

    def _copied(self, batches: Iterator[Batch]) -> Iterator[tuple[Tensor, Targets]]:
        for batch in batches:
            pair = torch.from_numpy(batch.images.copy()), targets_of(batch)
            if len(self.kept) < KEPT_BATCHES:
                self.kept.append(pair)
            yield pair

    def ingest(self) -> int:
        """Take the batches of an epoch and return how many images they held."""
        return sum(len(batch.images) for batch in self.epoch())

    def step(self) -> int:
        """Learn from as many batches, all in memory."""
        return self._learn(itertools.islice(itertools.cycle(self.kept), self.steps))

    def whole(self) -> int:
        """Learn from the batches of an epoch as they come."""
        return self._learn((torch.from_numpy(batch.images), targets_of(batch)) for batch in self.epoch())

    def _learn(self, batches: Iterator[tuple[Tensor, Targets]]) -> int:
        images = 0
        for number, (pixels, targets) in enumerate(batches, start=1):
            self.learner.learn(pixels, targets, must_update=number == self.steps)
            images += len(pixels)
        if self.dist_context.device.type == "cuda":
            torch.cuda.synchronize()
        return images

    def rate(self, work: Callable[[], int]) -> float:
        """Return images/s of all workers, which begin together; the slowest one counts."""
        self.dist_context.gather(None)
        started = time.perf_counter()
        images = work()
        seconds = time.perf_counter() - started
        return sum(self.dist_context.gather(images)) / max(self.dist_context.gather(seconds))


def measure(context: TrainContext, dist_context: DistContext, report: Report, *, rounds: int, limit: int) -> dict[str, Any]:
    """Return the rates of every round, in images/s over all workers, and the machine of this worker."""
    learner = make_learner(context, dist_context)
    loader = make_loader(context)
    found = []
    with closing(loader):
        bench = Bench(context, dist_context, learner, loader, limit)
        before = machine()
        bench.keep()
        for _ in range(rounds):
            row = {"ingest": bench.rate(bench.ingest), "step": bench.rate(bench.step), "whole": bench.rate(bench.whole)}
            found.append({**row, "first_batch_s": max(dist_context.gather(bench.first_batch_s))})
    parameters = sum(p.numel() for p in learner.network.parameters())
    return {"rounds": found, "steps": bench.steps, "parameters": parameters, "machine": before}

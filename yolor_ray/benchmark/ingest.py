"""Compare plain reading and decoding, the ingest alone, the training step alone, and the last two together as in training.

Each training worker measures the four in turns, with one network, one loader and one plan. A slow moment of the machine thus affects
all four.
"""

import dataclasses
import functools
import itertools
import logging
import statistics
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from yolor_ray.cluster.block_source import direct_source, kept_source
from yolor_ray.cluster.connect import start_ray
from yolor_ray.config import TrainConfig
from yolor_ray.config.benchmark import IngestConfig
from yolor_ray.data.images.decode import decode
from yolor_ray.data.loading.batch import Batch
from yolor_ray.data.loading.epoch_plan import Steps, plan_steps, windows_in_use
from yolor_ray.data.loading.epoch_windows import Window
from yolor_ray.data.loading.loader import Source
from yolor_ray.data.loading.loader_process import LoaderProcess
from yolor_ray.data.shards.dataset import Dataset, RowGroup
from yolor_ray.inference.timing import spread
from yolor_ray.io import storage
from yolor_ray.io.filesystem import filesystem
from yolor_ray.report.provenance import machine
from yolor_ray.train.context import Report, TrainContext, make_learner, make_loader, make_targets, make_windows
from yolor_ray.train.distributed import DistContext
from yolor_ray.train.elastic.worker_group import run_in_process, run_on_workers
from yolor_ray.train.learner import Learner
from yolor_ray.train.losses.assign import Targets
from yolor_ray.train.run import prepare

logger = logging.getLogger(__name__)

TINY_LR = 1e-6
"""Learning rate that hardly changes the weights, so that every round computes the same."""
KEPT_BATCHES = 8
"""Batches in memory for the measurement of the step alone."""
RAW_THREADS = 2
"""Threads of plain reading and decoding."""
MEASURES = ("raw", "ingest", "step", "whole")
SOURCES: dict[str, Callable[[Dataset], Source]] = {"direct": direct_source, "object_store": kept_source}


def ingest(config: IngestConfig) -> dict[str, Any]:
    """Measure plain reading and decoding, the ingest alone, the step alone and the whole in turns; return their rates and ratios.

    `raw_ratio` is ingest / raw. `ratio` is whole / min(ingest, step): 1 if the faster of the two costs nothing. `shared_ratio` is the whole
    relative to 1 / (1/ingest + 1/step), the rate if both share the same cores. A `shared_ratio` of 1 or more means that nothing else costs
    time. Ratios are medians over rounds; spreads are (largest - smallest) / median.
    """
    run = storage.absolute(storage.join(config.train.run.storage, f"benchmark-{uuid.uuid4().hex[:8]}"))
    context = prepare(_steady_config(config), run)
    measurement = _measure(context, config)
    rounds = measurement["rounds"]
    for number, row in enumerate(rounds, start=1):
        logger.info("event=round number=%d %s", number, " ".join(f"{name}={value:.4g}" for name, value in row.items()))
    return {
        **_ratios(rounds),
        "images_per_s": {name: statistics.median(row[name] for row in rounds) for name in MEASURES},
        "spreads": {name: spread([row[name] for row in rounds]) for name in MEASURES},
        "first_batch_s": statistics.median(row["first_batch_s"] for row in rounds),
        "rounds": rounds,
        "settings": {**_settings(context, config), "steps": measurement["steps"], "parameters": measurement["parameters"]},
        "machine": measurement["machine"],
    }


def _steady_config(config: IngestConfig) -> TrainConfig:
    """Return the run without warm-up, whose steps cost more, and with enough epochs for all rounds."""
    optim = config.train.optim
    epochs = max(optim.epochs, 2 * config.rounds + 1)
    return dataclasses.replace(config.train, optim=dataclasses.replace(optim, epochs=epochs, warmup_epochs=0.0, lr=TINY_LR))


def _ratios(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    ratios = [row["whole"] / min(row["ingest"], row["step"]) for row in rounds]
    shared = [row["whole"] * (1 / row["ingest"] + 1 / row["step"]) for row in rounds]
    raw = statistics.median(row["ingest"] / row["raw"] for row in rounds)
    return {"ratio": statistics.median(ratios), "ratio_spread": spread(ratios), "shared_ratio": statistics.median(shared), "raw_ratio": raw}


def _settings(context: TrainContext, config: IngestConfig) -> dict[str, Any]:
    train = config.train
    return {
        "data": train.data.train,
        "images": context.train.images,
        "dataset_mb": round(sum(shard.bytes for shard in context.train.shards) / 1e6, 1),
        "image_px": train.data.image_px,
        "batch": train.optim.batch,
        "workers": train.cluster.worker_range[1],
        "decode_threads": train.data.decode_threads,
        "source": config.source,
    }


def _measure(context: TrainContext, config: IngestConfig) -> dict[str, Any]:
    """Measure on the same workers as training."""
    train_fn = functools.partial(measure_worker, rounds=config.rounds, max_batches=config.steps)
    cluster, chosen = config.train.cluster, config.source != "auto"
    if config.source == "object_store":
        start_ray(log_to_driver=True, dashboard=cluster.worker_range[1] > 0, allow_unauthenticated=cluster.allow_unauthenticated)
    if chosen:
        context = dataclasses.replace(context, source=SOURCES[config.source](context.train))
    if cluster.worker_range[1] == 0:
        return run_in_process(context, train_fn)
    try:
        return run_on_workers(context, train_fn, context.source if chosen else None)
    finally:
        storage.delete(context.run)


def measure_worker(context: TrainContext, dist_context: DistContext, report: Report, *, rounds: int, max_batches: int) -> dict[str, Any]:
    """Return the rates of every round, in images/s over all workers, and the machine of this worker."""
    learner = make_learner(context, dist_context)
    loader = make_loader(context)
    rows = []
    with closing(loader):
        timer = WorkerTimer(context, dist_context, learner, loader, max_batches)
        before = machine()
        timer.warm_up()
        for _ in range(rounds):
            rates = {name: timer.rate(getattr(timer, name)) for name in MEASURES}
            rows.append({**rates, "first_batch_s": max(dist_context.gather(timer.first_batch_s))})
    parameters = sum(p.numel() for p in learner.network.parameters())
    return {"rounds": rows, "steps": timer.steps, "parameters": parameters, "machine": before}


def read_and_decode(dataset: Dataset, groups: Sequence[RowGroup], image_px: int) -> int:
    """Read row groups by plain pyarrow, without verification, and decode their images in two threads; return the number of images."""

    def decode_group(group: RowGroup) -> int:
        member = dataset.members[group.member] if dataset.members else dataset
        system, path = filesystem(storage.join(member.url, group.shard))
        with system.open_input_file(path) as file:
            images = pq.ParquetFile(file).read_row_group(group.index, columns=["image"], use_threads=False)["image"]
        for image in images:
            decode(image.as_py(), fit_px=image_px)
        return len(images)

    with ThreadPoolExecutor(RAW_THREADS) as threads:
        return sum(threads.map(decode_group, groups))


@dataclass
class WorkerTimer:
    """Timer of one training worker, with the network and the loader of all measurements."""

    context: TrainContext
    dist_context: DistContext
    learner: Learner
    loader: LoaderProcess
    max_batches: int
    """Most batches per measurement; 0 for the whole epoch."""
    epochs: int = 0
    """Number of epochs begun."""
    first_batch_s: float = 0.0
    """Time from the beginning of the newest epoch to its first batch, with planning."""
    steps: int = 0
    """Batches of an epoch."""
    kept: list[tuple[Tensor, Targets]] = field(default_factory=list)
    """Batches in memory, for the step alone."""

    def warm_up(self) -> int:
        """Learn from one epoch, and keep copies of its first batches."""
        return self._learn(self._keep_copies(self._next_epoch()))

    def raw(self) -> int:
        """Read and decode the row groups of the next epoch, which is not begun; return their number of images."""
        windows, steps = self._plan()
        groups = [group for w in windows_in_use(steps) for group in windows[w].groups]
        return read_and_decode(self.context.train, groups, self.context.config.data.image_px)

    def ingest(self) -> int:
        """Load the batches of an epoch and return their number of images."""
        return sum(len(batch.images) for batch in self._next_epoch())

    def step(self) -> int:
        """Learn from as many batches as an epoch has, all in memory; return their number of images."""
        return self._learn(itertools.islice(itertools.cycle(self.kept), self.steps))

    def whole(self) -> int:
        """Load the batches of an epoch, learn from each, and return their number of images."""
        return self._learn((torch.from_numpy(batch.images), make_targets(batch)) for batch in self._next_epoch())

    def rate(self, function: Callable[[], int]) -> float:
        """Return the images/s of all workers, which start together; the time is that of the slowest worker."""
        self.dist_context.gather(None)
        started = time.perf_counter()
        images = function()
        seconds = time.perf_counter() - started
        return sum(self.dist_context.gather(images)) / max(self.dist_context.gather(seconds))

    def _plan(self) -> tuple[list[Window], Steps]:
        """Return the windows and this worker's steps of the next epoch."""
        windows = make_windows(self.context, self.epochs)
        none_seen = np.zeros(self.context.train.images, bool)
        rank, world_size, batch = self.dist_context.rank, self.dist_context.world_size, self.context.config.optim.batch
        return windows, plan_steps(windows, none_seen, rank=rank, world_size=world_size, batch=batch)[: self.max_batches or None]

    def _next_epoch(self) -> Iterator[Batch]:
        """Begin the next epoch and yield its batches."""
        started = time.perf_counter()
        windows, steps = self._plan()
        self.steps, self.epochs = len(steps), self.epochs + 1
        for index, loaded in enumerate(self.loader.epoch(windows, steps)):
            if index == 0:
                self.first_batch_s = time.perf_counter() - started
            yield loaded

    def _keep_copies(self, batches: Iterator[Batch]) -> Iterator[tuple[Tensor, Targets]]:
        for batch in batches:
            sample = torch.from_numpy(batch.images.copy()), make_targets(batch)
            if len(self.kept) < KEPT_BATCHES:
                self.kept.append(sample)
            yield sample

    def _learn(self, batches: Iterator[tuple[Tensor, Targets]]) -> int:
        images = 0
        for number, (pixels, targets) in enumerate(batches, start=1):
            self.learner.learn(pixels, targets, must_update=number == self.steps)
            images += len(pixels)
        if self.dist_context.device.type == "cuda":
            torch.cuda.synchronize()
        return images

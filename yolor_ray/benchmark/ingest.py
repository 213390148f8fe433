"""Compare the ingest by plain reading, the ingest alone, the training step alone, and the last two together as in training.

Each training worker measures the four in turns, with one network and equal samples. A slow moment of the machine thus affects all four.
Several workers also measure the step without the exchange of gradients.
"""

import dataclasses
import functools
import itertools
import logging
import statistics
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from yolor_ray.cluster.block_source import direct_source, kept_source
from yolor_ray.cluster.connect import start_ray
from yolor_ray.config import TrainConfig
from yolor_ray.config.benchmark import IngestConfig
from yolor_ray.data.loading.batch import Batch
from yolor_ray.data.loading.epoch_plan import plan_steps
from yolor_ray.data.loading.loader import Source
from yolor_ray.data.loading.loader_process import LoaderProcess
from yolor_ray.data.loading.read_ahead import read_ahead
from yolor_ray.data.shards.dataset import Dataset, RowGroup
from yolor_ray.data.shards.relabel import apply_mapping
from yolor_ray.inference.timing import spread
from yolor_ray.io import storage
from yolor_ray.io.filesystem import filesystem
from yolor_ray.report.provenance import machine
from yolor_ray.train.context import BatchLoader, Report, TrainContext, make_learner, make_loader, make_targets, make_windows
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
"""Threads of plain reading."""
MEASURES = ("raw", "ingest", "step", "whole")
ALONE = "alone"
"""Measure of the step of several workers, each with a network of its own."""
SOURCES: dict[str, Callable[[Dataset], Source]] = {"direct": direct_source, "object_store": kept_source}


def ingest(config: IngestConfig) -> dict[str, Any]:
    """Measure the ingest by plain reading, the ingest alone, the step alone and the whole in turns; return their rates and ratios.

    `raw_ratio` is ingest / raw. `ratio` is whole / min(ingest, step): 1 if the faster of the two costs nothing. `shared_ratio` is the whole
    relative to 1 / (1/ingest + 1/step), the rate if both share the same cores. A `shared_ratio` of 1 or more means that nothing else costs
    time. Of several workers, `workers_ratio` is step / alone: 1 if the exchange of gradients costs nothing. Ratios are medians over rounds;
    spreads are (largest - smallest) / median.
    """
    run = storage.absolute(storage.join(config.train.run.storage, f"benchmark-{uuid.uuid4().hex[:8]}"))
    context = prepare(_steady_config(config), run)
    measurement = _measure(context, config)
    rounds = measurement["rounds"]
    for number, row in enumerate(rounds, start=1):
        logger.info("event=round number=%d %s", number, " ".join(f"{name}={value:.4g}" for name, value in row.items()))
    measures = [name for name in (*MEASURES, ALONE) if name in rounds[0]]
    return {
        **_ratios(rounds),
        "images_per_s": {name: statistics.median(row[name] for row in rounds) for name in measures},
        "spreads": {name: spread([row[name] for row in rounds]) for name in measures},
        "first_batch_s": statistics.median(row["first_batch_s"] for row in rounds),
        "rounds": rounds,
        "settings": {**_settings(context, config), "steps": measurement["steps"], "parameters": measurement["parameters"]},
        "machine": measurement["machine"],
    }


def _steady_config(config: IngestConfig) -> TrainConfig:
    """Return the run without warm-up, whose steps cost more, and with enough epochs for all rounds."""
    optim = config.train.optim
    epochs = max(optim.epochs, 3 * config.rounds + 1)
    return dataclasses.replace(config.train, optim=dataclasses.replace(optim, epochs=epochs, warmup_epochs=0.0, lr=TINY_LR))


def _ratios(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    ratios = [row["whole"] / min(row["ingest"], row["step"]) for row in rounds]
    shared = [row["whole"] * (1 / row["ingest"] + 1 / row["step"]) for row in rounds]
    raw = statistics.median(row["ingest"] / row["raw"] for row in rounds)
    result = {
        "ratio": statistics.median(ratios),
        "ratio_spread": spread(ratios),
        "shared_ratio": statistics.median(shared),
        "raw_ratio": raw,
    }
    if ALONE in rounds[0]:
        result["workers_ratio"] = statistics.median(row["step"] / row[ALONE] for row in rounds)
    return result


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
    separate = make_learner(context, DistContext(0, 1, dist_context.device)) if dist_context.world_size > 1 else learner
    # All rounds with the same CPUs.
    context = dataclasses.replace(context, loader=LoaderProcess)
    loader, raw_loader = make_loader(context), make_loader(dataclasses.replace(context, source=plain_source(context.train)))
    rows = []
    with closing(loader), closing(raw_loader):
        timer = WorkerTimer(context, dist_context, learner, separate, loader, raw_loader, max_batches)
        measures = MEASURES if dist_context.world_size == 1 else (*MEASURES, ALONE)
        before = machine()
        timer.warm_up()
        for _ in range(rounds):
            rates = {name: timer.rate(getattr(timer, name)) for name in measures}
            rows.append({**rates, "first_batch_s": max(dist_context.gather(timer.first_batch_s))})
    parameters = sum(p.numel() for p in learner.network.parameters())
    return {"rounds": rows, "steps": timer.steps, "parameters": parameters, "machine": before}


def plain_source(dataset: Dataset) -> Source:
    """Return a source that reads row groups by plain pyarrow in two threads, without verification."""
    return functools.partial(_read_plainly, dataset)


def _read_plainly(dataset: Dataset, groups: Iterable[RowGroup]) -> Iterator[pa.Table]:
    def read(group: RowGroup) -> pa.Table:
        member = dataset.members[group.member] if dataset.members else dataset
        system, path = filesystem(storage.join(member.url, group.shard))
        with system.open_input_file(path) as file:
            table = pq.ParquetFile(file).read_row_group(group.index, use_threads=False)
        return apply_mapping(table, dataset.mapping_of(group.member)) if dataset.members else table

    with ThreadPoolExecutor(RAW_THREADS) as threads:
        yield from read_ahead(threads, read, groups, RAW_THREADS)


@dataclass
class WorkerTimer:
    """Timer of one training worker, with the network and the loader of all measurements."""

    context: TrainContext
    dist_context: DistContext
    learner: Learner
    separate: Learner
    """Learner that exchanges no gradients with other workers."""
    loader: BatchLoader
    raw_loader: BatchLoader
    """Loader of the same batches, by plain reading."""
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

    def warm_up(self) -> None:
        """Learn from one epoch, and keep copies of its first batches."""
        self._learn(self.learner, self._keep_copies(self._next_epoch(self.loader)))
        if self.separate is not self.learner:
            self._learn(self.separate, self.kept)

    def raw(self) -> int:
        """Load the batches of an epoch by plain reading and return their number of images."""
        return sum(len(batch.images) for batch in self._next_epoch(self.raw_loader))

    def ingest(self) -> int:
        """Load the batches of an epoch and return their number of images."""
        return sum(len(batch.images) for batch in self._next_epoch(self.loader))

    def step(self) -> int:
        """Learn from as many batches as an epoch has, all in memory; return their number of images."""
        return self._learn(self.learner, itertools.islice(itertools.cycle(self.kept), self.steps))

    def alone(self) -> int:
        """Learn from the batches of `step` without other workers; return their number of images."""
        return self._learn(self.separate, itertools.islice(itertools.cycle(self.kept), self.steps))

    def whole(self) -> int:
        """Load the batches of an epoch, learn from each, and return their number of images."""
        return self._learn(self.learner, ((torch.from_numpy(batch.images), make_targets(batch)) for batch in self._next_epoch(self.loader)))

    def rate(self, function: Callable[[], int]) -> float:
        """Return the images/s of all workers, which start together; the time is that of the slowest worker."""
        self.dist_context.gather(None)
        started = time.perf_counter()
        images = function()
        seconds = time.perf_counter() - started
        return sum(self.dist_context.gather(images)) / max(self.dist_context.gather(seconds))

    def _next_epoch(self, loader: BatchLoader) -> Iterator[Batch]:
        """Begin the next epoch and yield its batches."""
        started = time.perf_counter()
        windows = make_windows(self.context, self.epochs)
        none_seen = np.zeros(self.context.train.images, bool)
        rank, world_size, batch = self.dist_context.rank, self.dist_context.world_size, self.context.config.optim.batch
        steps = plan_steps(windows, none_seen, rank=rank, world_size=world_size, batch=batch)[: self.max_batches or None]
        self.steps, self.epochs = len(steps), self.epochs + 1
        for index, loaded in enumerate(loader.epoch(windows, steps)):
            if index == 0:
                self.first_batch_s = time.perf_counter() - started
            yield loaded

    def _keep_copies(self, batches: Iterator[Batch]) -> Iterator[tuple[Tensor, Targets]]:
        for batch in batches:
            sample = torch.from_numpy(batch.images.copy()), make_targets(batch)
            if len(self.kept) < KEPT_BATCHES:
                self.kept.append(sample)
            yield sample

    def _learn(self, learner: Learner, batches: Iterable[tuple[Tensor, Targets]]) -> int:
        images = 0
        for number, (pixels, targets) in enumerate(batches, start=1):
            learner.learn(pixels, targets, must_update=number == self.steps)
            images += len(pixels)
        if self.dist_context.device.type == "cuda":
            torch.cuda.synchronize()
        return images

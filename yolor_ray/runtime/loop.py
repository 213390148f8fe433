"""Train: the one loop for this process alone and for any number of workers, on CPU or GPU.

Read `train_loop` top to bottom: resume or start, then for each epoch plan, learn, validate, checkpoint.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from yolor_ray.boxes import cxcywh_from_xyxy
from yolor_ray.config import Train
from yolor_ray.data.loader import Batch, Loader, Source, records_per_window
from yolor_ray.data.plan import Window, epoch_windows, seen_after, steps_of
from yolor_ray.data.shards import Dataset
from yolor_ray.data.targets import Wanted
from yolor_ray.learn.assign import Targets
from yolor_ray.learn.optim import Schedule
from yolor_ray.learn.step import Learner
from yolor_ray.model.network import Yolor
from yolor_ray.runtime.board import Board
from yolor_ray.runtime.checkpoint import Progress, Saver, resume
from yolor_ray.runtime.pretrained import start_from
from yolor_ray.runtime.team import Team
from yolor_ray.runtime.validate import keep_best, validate

logger = logging.getLogger(__name__)

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Job:
    """Hold all that a worker needs; small enough to send, for pixels and weights travel otherwise."""

    config: Train
    run: str
    """Folder of the run."""
    train: Dataset
    val: Dataset
    anchors: np.ndarray
    """(L, A, 2) pixels."""
    source: Source
    identities: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Individuals of the training set, ascending, if the network is to tell them apart."""
    pretrained: str = ""
    """URL of the weights to start from, if any."""

    @property
    def wanted(self) -> Wanted:
        """What training needs to know beside boxes."""
        tasks, train = self.config.network.tasks, self.train
        members = range(max(len(train.members), 1))
        return Wanted(
            masks="segment" in tasks,
            keypoint_names=train.keypoint_names if "pose" in tasks else (),
            identities=self.identities if "embed" in tasks else None,
            image_classes=np.stack([train.image_classes_of(member) for member in members]) if "classify" in tasks else None,
        )


@dataclass
class _Meter:
    """Add up losses on the device; read them only when asked."""

    images: int = 0
    steps: int = 0
    totals: dict[str, Tensor] = field(default_factory=dict)
    start: float = field(default_factory=time.monotonic)
    waited_s: float = 0.0
    first_wait_s: float = 0.0

    def add(self, parts: dict[str, Tensor], images: int) -> None:
        self.totals = {name: self.totals.get(name, 0) + part for name, part in parts.items()}
        self.images += images
        self.steps += 1

    def means(self) -> dict[str, float]:
        if not self.totals:
            return {"loss": 0.0}
        values = (torch.stack(list(self.totals.values())) / self.steps).tolist()
        return {"loss": sum(values), **dict(zip(self.totals, values, strict=True))}

    @property
    def images_per_s(self) -> float:
        return self.images / max(time.monotonic() - self.start, 1e-9)

    def rates(self) -> dict[str, float]:
        """Return images/s, the share of time spent waiting for batches, the wait for the first one, and the time since the start."""
        elapsed = max(time.monotonic() - self.start, 1e-9)
        rates = {"images_per_s": self.images_per_s, "wait_share": self.waited_s / elapsed, "first_batch_s": self.first_wait_s}
        return {**rates, "seconds": elapsed}


def train_loop(job: Job, team: Team, report: Report) -> None:
    """Train from the newest checkpoint, or from the start, to the last epoch."""
    config = job.config
    learner = make_learner(job, team)
    progress = resume(job.run, learner, Progress(job.train.digest, seen=np.zeros(job.train.images, bool)))
    for row in progress.rows:
        # A study that goes on judges a trial by all that it has measured.
        if "AP" in row and row["epoch"] < config.optim.epochs:
            report(row)
    if learner.step == 0 and job.pretrained:
        start_from(job.pretrained, learner, job.train)
    saver = Saver(job.run, config.run, config.optim.epochs)
    loader = make_loader(job)
    with ExitStack() as stack:
        stack.callback(loader.close)
        board = stack.enter_context(Board(job.run, progress.rows, config.optim.epochs)) if team.leads else None
        for epoch in range(progress.epoch, config.optim.epochs):
            row = _learn_epoch(job, team, learner, loader, progress, board, saver)
            progress.epoch, progress.seen = epoch + 1, np.zeros(job.train.images, bool)
            validates = progress.epoch % config.run.validate_every == 0 or progress.epoch == config.optim.epochs
            found = validate(learner, job.val, config, team) if validates else None
            if board:
                if found:
                    row |= found.measured.metrics
                    keep_best(job.run, learner, config, job.val, progress, found)
                board.add(row, draw=validates)
                saver.epoch_done(learner, progress)
            # A study may stop a trial on what it reports, but not one that is done: its weights are still to be published.
            if validates and progress.epoch < config.optim.epochs:
                report(row)


def make_learner(job: Job, team: Team) -> Learner:
    """Build the network alike on every worker, and what trains it."""
    config = job.config
    cv2.setNumThreads(0)
    torch.manual_seed(config.run.seed)
    network = Yolor(
        config.network,
        len(job.train.classes),
        torch.tensor(job.anchors),
        image_classes=len(job.train.image_classes),
        keypoints=len(job.train.keypoint_names),
        identities=len(job.identities),
    )
    if team.device.type == "cuda" and team.world > 1:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    network = network.to(team.device).train()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    windows = windows_of(job, epoch=0)
    nothing = np.zeros(job.train.images, bool)
    steps = len(steps_of(windows, nothing, rank=0, world=team.world, batch=share_of(config, team)))
    return Learner(network, config, Schedule(config.optim, steps), team.wrap(network))


def make_loader(job: Job) -> Loader:
    """Return what makes the batches of a worker."""
    config = job.config
    return Loader(
        job.source,
        image_px=config.data.image_px,
        augment=config.augment,
        seed=config.run.seed,
        threads=config.data.threads,
        wanted=job.wanted,
    )


def share_of(config: Train, team: Team) -> int:
    """Return how many images of each batch are this worker's."""
    return max(config.optim.batch // team.world, 1)


def windows_of(job: Job, epoch: int) -> list[Window]:
    """Return the windows of an epoch."""
    size = records_per_window(job.config.data.image_px, job.wanted)
    return epoch_windows(job.train.row_groups, records_per_window=size, seed=job.config.run.seed, epoch=epoch)


def _learn_epoch(
    job: Job, team: Team, learner: Learner, loader: Loader, progress: Progress, board: Board | None, saver: Saver
) -> dict[str, Any]:
    """Learn from what is left of an epoch and return its metrics."""
    config, epoch = job.config, progress.epoch
    windows, share = windows_of(job, epoch), share_of(config, team)
    steps = steps_of(windows, progress.seen, rank=team.rank, world=team.world, batch=share)
    plain = epoch >= config.optim.epochs - config.augment.plain_epochs
    meter, start_seen = _Meter(), progress.seen
    batches = loader.epoch(windows, steps, epoch=epoch, plain=plain)
    for number, batch in enumerate(_timed(batches, meter), start=1):
        parts = learner.learn(torch.from_numpy(batch.images), targets_of(batch), must_update=number == len(steps))
        meter.add(parts, len(batch.images) * team.world)
        if board and board.due:
            board.beat(epoch + number / len(steps), meter.means()["loss"], meter.images_per_s)
        if board and saver.overdue and learner.settled and number < len(steps):
            progress.seen = seen_after(windows, start_seen, steps=number, world=team.world, batch=share)
            saver.save(learner, progress)
    return {"epoch": epoch + 1, "lr": learner.optimizer.param_groups[0]["lr"], **meter.rates(), **meter.means()}


def _timed(batches: Iterator[Batch], meter: _Meter) -> Iterator[Batch]:
    """Yield batches and add up the time spent waiting for them."""
    while True:
        asked = time.monotonic()
        batch = next(batches, None)
        waited = time.monotonic() - asked
        meter.first_wait_s = meter.first_wait_s or waited
        meter.waited_s += waited
        if batch is None:
            return
        yield batch


def targets_of(batch: Batch) -> Targets:
    """Return what is known about a batch as tensors."""
    others = ("keypoints", "identities", "has_mask", "instances", "image_labels")
    known = {name: torch.from_numpy(array) for name in others if (array := getattr(batch, name)) is not None}
    return Targets(
        torch.from_numpy(batch.positions),
        torch.from_numpy(batch.labels),
        cxcywh_from_xyxy(torch.from_numpy(batch.boxes_xyxy)),
        boxes_known=None if batch.boxes_known.all() else torch.from_numpy(batch.boxes_known),
        **known,
    )

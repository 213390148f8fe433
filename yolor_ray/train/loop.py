"""Train: the one loop for this process alone and for any number of workers, on CPU or GPU.

Read `train_loop` top to bottom: resume or start, then for each epoch plan, learn, validate, checkpoint. After each update
all workers agree whether to go on, to save, or to save and end.
"""

import enum
import logging
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from yolor_ray.data.loading.epoch_ledger import Ledger
from yolor_ray.data.loading.epoch_plan import Step, Window, steps_of
from yolor_ray.data.loading.loader import Loader
from yolor_ray.errors import ConfigError, StorageError
from yolor_ray.io import storage
from yolor_ray.train.checkpoint.async_writer import AsyncCheckpointer
from yolor_ray.train.checkpoint.attempts import RunAttempt
from yolor_ray.train.checkpoint.checkpoint import Progress, resume
from yolor_ray.train.context import Report, TrainContext, make_learner, make_loader, targets_of, windows_of
from yolor_ray.train.distributed import DistContext
from yolor_ray.train.epoch_meter import EpochMeter
from yolor_ray.train.learner import Learner
from yolor_ray.train.run_log import RunLogger
from yolor_ray.train.settings_lock import RUN_FILE
from yolor_ray.train.validation import Validation, keep_best, validate
from yolor_ray.train.warm_start import start_from

logger = logging.getLogger(__name__)


class TrainOutcome(enum.Enum):
    """Say how a life ended."""

    DONE = "done"
    STOPPED = "stopped"
    """It was asked to, and wrote a checkpoint."""


class StepDecision(enum.IntEnum):
    """Say what is to be done after an update; the highest of all workers' words counts."""

    CONTINUE = 0
    SAVE = 1
    STOP = 2


@dataclass
class RankZeroState:
    """Hold what the leading worker alone has: it writes the run's files."""

    attempt: RunAttempt
    board: RunLogger
    saver: AsyncCheckpointer


@dataclass
class _Training:
    """Hold what a worker trains with."""

    context: TrainContext
    dist_context: DistContext
    learner: Learner
    loader: Loader
    progress: Progress
    leader: RankZeroState | None


def train_loop(context: TrainContext, dist_context: DistContext, report: Report) -> TrainOutcome:
    """Train from the newest checkpoint, or from the start, to the last epoch, or until the job's notice asks to end."""
    config = context.config
    _check_folder(context.run)
    with ExitStack() as stack:
        attempt = (
            stack.enter_context(RunAttempt(context.run, dist_context.world_size, context.restart_reason))
            if dist_context.is_rank_zero
            else None
        )
        learner = make_learner(context, dist_context)
        progress = resume(context.run, learner, Progress(context.train.digest, seen=np.zeros(context.train.images, bool)), dist_context)
        _report_again(progress, config.optim.epochs, report)
        if learner.step == 0 and context.pretrained:
            start_from(context.pretrained, learner, context.train)
        loader = make_loader(context)
        stack.callback(loader.close)
        training = _Training(
            context, dist_context, learner, loader, progress, _make_rank_zero_state(context, attempt, learner, progress, stack)
        )
        while progress.epoch < config.optim.epochs:
            row = _learn_epoch(training)
            if row is None:
                return TrainOutcome.STOPPED
            progress.epoch, progress.seen = progress.epoch + 1, np.zeros(context.train.images, bool)
            _end_epoch(training, row, report)
            if progress.epoch < config.optim.epochs and _stop_between_epochs(training):
                return TrainOutcome.STOPPED
    return TrainOutcome.DONE


def _check_folder(run: str) -> None:
    """Raise ConfigError unless this worker sees the folder that the job began: a local one is there on one node alone."""
    if not storage.exists(storage.join(run, RUN_FILE)):
        expected = "expected what the job wrote there; workers on several nodes need s3:// or a folder that all of them share"
        raise ConfigError(f"run.storage: found no {RUN_FILE} in {run} on a worker's node, {expected}")


def _make_rank_zero_state(
    context: TrainContext, attempt: RunAttempt | None, learner: Learner, progress: Progress, stack: ExitStack
) -> RankZeroState | None:
    if attempt is None:
        return None
    epochs = context.config.optim.epochs
    saver = AsyncCheckpointer(context.run, context.config.run, epochs, attempt, learner.step)
    stack.callback(saver.close)
    return RankZeroState(attempt, stack.enter_context(RunLogger(context.run, progress.rows, epochs)), saver)


def _report_again(progress: Progress, epochs: int, report: Report) -> None:
    """Report earlier validations: a study that goes on judges a trial by all that it has measured."""
    for row in progress.rows:
        if "AP" in row and row["epoch"] < epochs:
            report(row)


def _end_epoch(training: _Training, row: dict[str, Any], report: Report) -> None:
    """Validate if it is time to, keep the best weights, show the epoch and write a checkpoint if one is due."""
    context, progress, learner = training.context, training.progress, training.learner
    config = context.config
    is_last = progress.epoch == config.optim.epochs
    validates = progress.epoch % config.run.validate_epochs == 0 or is_last
    found = validate(learner, context.val, config, training.dist_context) if validates else None
    if leader := training.leader:
        if found:
            leader.attempt.check()
            row |= found.measured.metrics
            _keep_best(training, leader, found, needed=is_last)
        leader.board.add(row, draw=validates)
        leader.saver.epoch_done(learner, progress)
    # A study may stop a trial on what it reports, but not one that is done: its weights are still to be published.
    if validates and not is_last:
        report(row)


def _keep_best(training: _Training, leader: RankZeroState, found: Validation, *, needed: bool) -> None:
    """Publish the weights if they are the best; if that cannot be done now and another validation follows, those before stay."""
    try:
        keep_best(training.context, leader.attempt.record.attempt, training.learner, training.progress, found)
    except StorageError as error:
        if needed:
            raise
        logger.error("event=best_weights_not_saved epoch=%d error='%s'", training.progress.epoch, error)


def _learn_epoch(training: _Training) -> dict[str, Any] | None:
    """Learn from what is left of an epoch and return its metrics; None if it was asked to end before."""
    context, dist_context, learner, progress = training.context, training.dist_context, training.learner, training.progress
    windows = windows_of(context, progress.epoch)
    steps = steps_of(windows, progress.seen, rank=dist_context.rank, world_size=dist_context.world_size, batch=context.config.optim.batch)
    meter, ledger = EpochMeter(), Ledger(progress.seen)
    for number, (step, batch) in enumerate(zip(steps, _batches(training, windows, steps, meter), strict=True), start=1):
        is_last = number == len(steps)
        parts = learner.learn(torch.from_numpy(batch.images), targets_of(batch), must_update=is_last, weight=step.weight)
        meter.add(parts, len(batch.images) * dist_context.world_size)
        if step.weight > 0:
            ledger.take(step.records)
        _show(training, progress.epoch + number / len(steps), meter)
        if learner.settled and not is_last and _save_or_stop(training, ledger) is StepDecision.STOP:
            return None
    ledger.merge(dist_context.gather(ledger.own))
    lr = learner.optimizer.param_groups[0]["lr"]
    return {"epoch": progress.epoch + 1, "lr": lr, "records": ledger.close(), **meter.rates(), **meter.means()}


def _batches(training: _Training, windows: list[Window], steps: list[Step], meter: EpochMeter) -> Any:
    context, epoch = training.context, training.progress.epoch
    plain = epoch >= context.config.optim.epochs - context.config.augment.close_mosaic_epochs
    return meter.timed(training.loader.epoch(windows, steps, epoch=epoch, plain=plain))


def _show(training: _Training, epoch: float, meter: EpochMeter) -> None:
    if leader := training.leader:
        leader.attempt.record_step(training.learner.step)
        if leader.board.due:
            leader.board.beat(epoch, meter.means()["loss"], meter.images_per_s)


def _save_or_stop(training: _Training, ledger: Ledger) -> StepDecision:
    """Let all workers agree on what to do now; if it is to save or to stop, write what all have seen into a checkpoint."""
    context, dist_context, learner, progress, leader = (
        training.context,
        training.dist_context,
        training.learner,
        training.progress,
        training.leader,
    )
    own = StepDecision.CONTINUE
    if leader and leader.saver.due(learner.step):
        own = StepDecision.SAVE
    if leader and context.stop_signal():
        own = StepDecision.STOP
    agreed = StepDecision(dist_context.all_reduce_max(own))
    if agreed is not StepDecision.CONTINUE:
        ledger.merge(dist_context.gather(ledger.own))
        progress.seen = ledger.seen
        if leader:
            (leader.saver.finish if agreed is StepDecision.STOP else leader.saver.save)(learner, progress)
    return agreed


def _stop_between_epochs(training: _Training) -> bool:
    """Let all workers agree whether to end after a whole epoch: one of a single update has no other moment to be asked."""
    leader = training.leader
    own = StepDecision.STOP if leader and training.context.stop_signal() else StepDecision.CONTINUE
    if training.dist_context.all_reduce_max(own) < StepDecision.STOP:
        return False
    if leader:
        leader.saver.finish(training.learner, training.progress)
    return True

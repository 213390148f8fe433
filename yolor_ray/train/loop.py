"""The training loop, for a single process and for any number of workers, on CPU or GPU.

Read `train_loop` top to bottom: resume or start, then for each epoch train, validate, log and write a checkpoint. After each
optimizer step all workers continue, compare their speeds, save a checkpoint, or save and stop, as they have agreed during the step.
"""

import enum
import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from yolor_ray.data.loading.epoch_ledger import Ledger
from yolor_ray.data.loading.epoch_plan import plan_steps
from yolor_ray.errors import ConfigError, StorageError
from yolor_ray.io import storage
from yolor_ray.train.checkpoint.async_writer import AsyncCheckpointer
from yolor_ray.train.checkpoint.attempts import RunAttempt
from yolor_ray.train.checkpoint.checkpoint import Progress, resume
from yolor_ray.train.context import BatchLoader, Report, TrainContext, make_learner, make_loader, make_targets, make_windows
from yolor_ray.train.distributed import DistContext
from yolor_ray.train.epoch_meter import EpochMeter
from yolor_ray.train.learner import Learner
from yolor_ray.train.optim.early_stop import ends_early
from yolor_ray.train.progress.slow_workers import SpeedComparison
from yolor_ray.train.progress.warnings_once import warn_of_little_learning
from yolor_ray.train.run_log import RunLogger
from yolor_ray.train.settings_lock import RUN_FILE
from yolor_ray.train.validation import Validation, save_if_best, validate
from yolor_ray.train.warm_start import load_pretrained

logger = logging.getLogger(__name__)


class TrainOutcome(enum.Enum):
    """End of an attempt."""

    DONE = "done"
    STOPPED = "stopped"
    """A stop signal ended the attempt after a checkpoint."""


class StepDecision(enum.IntEnum):
    """Action after an optimizer step; workers take the maximum (all-reduce)."""

    CONTINUE = 0
    COMPARE = 1
    """Compare the speeds of the workers."""
    SAVE = 2
    STOP = 3


@dataclass
class RankZeroState:
    """Writers of the run's files, which rank 0 alone has."""

    attempt: RunAttempt
    run_logger: RunLogger
    checkpointer: AsyncCheckpointer


@dataclass
class _Worker:
    """State of one training worker."""

    context: TrainContext
    dist_context: DistContext
    learner: Learner
    loader: BatchLoader
    progress: Progress
    comparison: SpeedComparison
    rank_zero: RankZeroState | None

    def start_decision(self, step: int) -> Callable[[], StepDecision]:
        """Begin to agree with all workers on the action after a step, and return a function that waits for the agreement.

        The messages pass while the workers compute the step. A single worker decides after it.
        """
        if self.dist_context.world_size == 1:
            return lambda: self._own_decision(step)
        agreed = self.dist_context.start_max(self._own_decision(step))
        return lambda: StepDecision(agreed())

    def _own_decision(self, step: int) -> StepDecision:
        """Return the action after a step: rank 0 has the stop signal and the schedules of checkpoints and comparisons."""
        if self.rank_zero is None:
            return StepDecision.CONTINUE
        if self.context.stop_signal():
            return StepDecision.STOP
        if self.rank_zero.checkpointer.is_due(step, self.progress.epoch):
            return StepDecision.SAVE
        return StepDecision.COMPARE if self.comparison.is_due else StepDecision.CONTINUE

    def agree_to_end_early(self, metrics: dict[str, Any]) -> bool:
        """Agree with all workers on the end of the run after a validation, whose metrics rank 0 has."""
        patience = self.context.config.optim.patience
        if patience == 0:
            return False
        tasks = self.context.config.network.tasks
        ends = self.rank_zero is not None and ends_early([*self.progress.rows, metrics], tasks, patience)
        return bool(self.dist_context.start_max(ends)())

    def save_checkpoint(self, *, wait: bool) -> None:
        """Write a checkpoint on rank 0; see `AsyncCheckpointer.save`."""
        if self.rank_zero:
            self.rank_zero.checkpointer.save(self.learner, self.progress, wait=wait)


def train_loop(context: TrainContext, dist_context: DistContext, report: Report) -> TrainOutcome:
    """Train from the newest checkpoint, or from the start, to the last epoch, to an early stop or to a stop signal."""
    _check_run_folder(context.run)
    with ExitStack() as stack:
        worker = _start_worker(context, dist_context, stack)
        for row in worker.progress.rows:
            # A resumed study judges a trial by all of the trial's validations.
            if "AP" in row and row["epoch"] < context.config.optim.epochs:
                report(row)
        return _train_epochs(worker, report)


def _check_run_folder(run: str) -> None:
    """Raise ConfigError if this worker cannot see the run's folder: a local folder exists on one node alone."""
    if not storage.exists(storage.join(run, RUN_FILE)):
        expected = "expected the file that the job wrote; workers on several nodes need s3:// or a folder that all nodes share"
        raise ConfigError(f"run.storage: found no {RUN_FILE} in {run} on a worker's node, {expected}")


def _start_worker(context: TrainContext, dist_context: DistContext, stack: ExitStack) -> _Worker:
    """Build a worker's state from the newest checkpoint, the pretrained weights or random weights; `stack` closes it."""
    attempt = None
    if dist_context.is_rank_zero:
        attempt = stack.enter_context(RunAttempt(context.run, dist_context.world_size, context.restart_reason))
    # The process of the loader starts while the network is built.
    loader = make_loader(context)
    stack.callback(loader.close)
    learner = make_learner(context, dist_context)
    progress = resume(context.run, learner, Progress(context.train.digest, seen=np.zeros(context.train.images, bool)), dist_context)
    if learner.step == 0 and context.pretrained:
        load_pretrained(context.pretrained, learner, context.train)
    rank_zero = None
    if attempt:
        checkpointer = AsyncCheckpointer(context.run, context.config.run, attempt, step=learner.step, epoch=progress.epoch)
        stack.callback(checkpointer.close)
        run_logger = RunLogger(context.run, progress.rows, context.config.optim.epochs)
        rank_zero = RankZeroState(attempt, run_logger, checkpointer)
    return _Worker(context, dist_context, learner, loader, progress, SpeedComparison(dist_context), rank_zero)


def _train_epochs(worker: _Worker, report: Report) -> TrainOutcome:
    """Train the remaining epochs; validate and write a checkpoint after an epoch where they are due."""
    context, learner, progress, rank_zero = worker.context, worker.learner, worker.progress, worker.rank_zero
    config = context.config
    # A run that was killed before its weights were published may have ended early.
    is_last = progress.epoch == config.optim.epochs or ends_early(progress.rows, config.network.tasks, config.optim.patience)
    while not is_last:
        metrics = _train_epoch(worker)
        if metrics is None:
            return TrainOutcome.STOPPED
        progress.epoch, progress.seen = progress.epoch + 1, np.zeros(context.train.images, bool)
        is_last = progress.epoch == config.optim.epochs
        validates = is_last or progress.epoch % config.run.validate_epochs == 0
        validation = validate(learner, context, worker.dist_context) if validates else None
        if validation:
            metrics |= validation.losses | validation.result.metrics
        is_last = is_last or (validates and worker.agree_to_end_early(metrics))
        if rank_zero:
            if validation:
                _save_if_best(worker, rank_zero.attempt, validation, must_succeed=is_last)
            rank_zero.run_logger.log_epoch(metrics, draw=validates, is_last=is_last)
            if validation:
                warn_of_little_learning(progress.rows, context, learner.average.updates)
            if is_last or rank_zero.checkpointer.is_due(learner.step, progress.epoch):
                worker.save_checkpoint(wait=is_last)
        # A study may stop a trial by its reports, except a finished trial, whose weights are still to be published.
        if validates and not is_last:
            report(metrics)
        # `_train_epoch` decides only between steps, and a one-step epoch has none.
        if not is_last and worker.start_decision(learner.step)() is StepDecision.STOP:
            worker.save_checkpoint(wait=True)
            return TrainOutcome.STOPPED
    return TrainOutcome.DONE


def _save_if_best(worker: _Worker, attempt: RunAttempt, validation: Validation, *, must_succeed: bool) -> None:
    """Publish the weights if they are the best; without `must_succeed`, a failed write leaves the previous best weights."""
    attempt.check()
    try:
        save_if_best(worker.context, attempt.record.attempt, worker.learner, worker.progress, validation)
    except StorageError as error:
        if must_succeed:
            raise
        logger.error("event=best_weights_not_saved epoch=%d error='%s'", worker.progress.epoch, error)


def _train_epoch(worker: _Worker) -> dict[str, Any] | None:
    """Train on the remaining records of an epoch and return its metrics; None after a stop signal.

    A checkpoint that is due is written between two steps.
    """
    context, dist_context, learner, progress = worker.context, worker.dist_context, worker.learner, worker.progress
    windows = make_windows(context, progress.epoch)
    steps = plan_steps(windows, progress.seen, rank=dist_context.rank, world_size=dist_context.world_size, batch=context.config.optim.batch)
    mosaic_closed = progress.epoch >= context.config.optim.epochs - context.config.augment.close_mosaic_epochs
    meter, ledger = EpochMeter(), Ledger(progress.seen)
    batches = meter.timed(worker.loader.epoch(windows, steps, mosaic_closed=mosaic_closed))
    for number, (step, batch) in enumerate(zip(steps, batches, strict=True), start=1):
        is_last = number == len(steps)
        agreed = worker.start_decision(learner.step + 1) if learner.updates_next and not is_last else lambda: StepDecision.CONTINUE
        losses = learner.learn(torch.from_numpy(batch.images), make_targets(batch), must_update=is_last, weight=step.weight)
        meter.add(losses, len(batch.images) * dist_context.world_size)
        if step.weight > 0:
            ledger.take(step.visits)
        if worker.rank_zero:
            _log_step(worker.rank_zero, learner.step, progress.epoch + number / len(steps), meter)
        decision = agreed()
        if decision is StepDecision.COMPARE:
            worker.comparison.compare(learner.average.network, batch.images, meter.recent_wait_share())
        elif decision is not StepDecision.CONTINUE:
            ledger.merge(dist_context.gather(ledger.counts))
            progress.seen = ledger.seen
            worker.save_checkpoint(wait=decision is StepDecision.STOP)
        if decision is StepDecision.STOP:
            return None
    ledger.merge(dist_context.gather(ledger.counts))
    lr = learner.optimizer.param_groups[0]["lr"]
    row = {"epoch": progress.epoch + 1, "lr": lr, "records": ledger.close(), **meter.rates(), **meter.means()}
    return row | ({f"gradient_{task}": norm for task, norm in learner.balance.norms.items()} if learner.balance else {})


def _log_step(rank_zero: RankZeroState, step: int, epoch: float, meter: EpochMeter) -> None:
    rank_zero.attempt.record_step(step)
    if rank_zero.run_logger.is_due:
        rank_zero.run_logger.log_progress(epoch, meter.means()["loss"], meter.images_per_s)

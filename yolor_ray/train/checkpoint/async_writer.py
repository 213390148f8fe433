"""Write checkpoints in a background thread: training waits only while its state is copied."""

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor

from yolor_ray.config import RunConfig
from yolor_ray.errors import StorageError
from yolor_ray.train.checkpoint.attempts import RunAttempt
from yolor_ray.train.checkpoint.checkpoint import Checkpoint, Progress, prune_checkpoints, take_checkpoint, write_checkpoint
from yolor_ray.train.learner import Learner

logger = logging.getLogger(__name__)


class AsyncCheckpointer:
    """Schedule and writer of a run's checkpoints on rank 0; at most one is being written."""

    def __init__(self, run: str, config: RunConfig, attempt: RunAttempt, *, step: int, epoch: int) -> None:
        """Start at the step and epoch of the newest checkpoint; unfinished checkpoints of earlier attempts are deleted."""
        self._run, self._config, self._attempt = run, config, attempt
        self._last_time, self._last_step, self._last_epoch = time.monotonic(), step, epoch
        self._complete_step: int | None = None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="yolor-checkpoint")
        self._writing: Future[None] | None = None
        self._prune()

    def is_due(self, step: int, epoch: int) -> bool:
        """Return True if a checkpoint is due after `step` and `epoch` finished epochs; False while one is being written.

        A checkpoint is due every `checkpoint_epochs` epochs, `checkpoint_steps` steps and `checkpoint_minutes` minutes.

        Raises:
            SupersededError: the last checkpoint was not written, because another job continues the run.

        """
        if self._writing and self._writing.done():
            self._wait_for_write()
        if self._writing:
            return False
        config = self._config
        by_epochs = epoch // config.checkpoint_epochs > self._last_epoch // config.checkpoint_epochs
        by_steps = 0 < config.checkpoint_steps <= step - self._last_step
        return by_epochs or by_steps or time.monotonic() - self._last_time > config.checkpoint_minutes * 60

    def save(self, learner: Learner, progress: Progress, *, wait: bool = False) -> None:
        """Snapshot the state and write the snapshot in the background; with `wait`, write the snapshot before returning.

        A failure in the background is logged, and the next checkpoint is tried when due. With `wait`, a failure raises StorageError.
        With `wait`, a state that the newest checkpoint already holds is not written again, which could damage that checkpoint.
        """
        if not wait:
            self._writing = self._executor.submit(self._try_write, *self._snapshot(learner, progress))
            return
        self._wait_for_write()
        if self._complete_step != learner.step:
            self._write(*self._snapshot(learner, progress))

    def close(self) -> None:
        """Wait for the background thread."""
        self._executor.shutdown()

    def _wait_for_write(self) -> None:
        if self._writing:
            self._writing.result()
            self._writing = None

    def _snapshot(self, learner: Learner, progress: Progress) -> tuple[Checkpoint, float]:
        """Return a copy of the state, and the time that training waited for the copy (s)."""
        start = time.monotonic()
        checkpoint = take_checkpoint(learner, progress)
        self._last_time, self._last_step, self._last_epoch = time.monotonic(), learner.step, progress.epoch
        return checkpoint, self._last_time - start

    def _try_write(self, checkpoint: Checkpoint, stalled_s: float) -> None:
        try:
            self._write(checkpoint, stalled_s)
        except StorageError as error:
            logger.error("event=checkpoint_failed step=%d consequence='the previous checkpoint stays' error='%s'", checkpoint.step, error)

    def _write(self, checkpoint: Checkpoint, stalled_s: float) -> None:
        start = time.monotonic()
        # Checked before the write, so that a superseded attempt writes nothing, and after the write, so that it deletes nothing.
        self._attempt.check()
        write_checkpoint(self._run, checkpoint, self._attempt.record.attempt)
        self._complete_step = checkpoint.step
        logger.info(
            "event=checkpoint step=%d epoch=%d stalled_s=%.3f written_s=%.3f",
            *(checkpoint.step, checkpoint.state["epoch"], stalled_s, time.monotonic() - start),
        )
        self._attempt.check()
        self._prune()

    def _prune(self) -> None:
        try:
            prune_checkpoints(self._run, self._attempt.record.attempt)
        except StorageError as error:
            logger.warning("event=prune_failed error='%s'", error)

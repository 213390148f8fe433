"""Write checkpoints beside training, when they are due: training waits only until its state is copied."""

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
    """Know when a checkpoint is due, and write it in a thread of its own; one at a time."""

    def __init__(self, run: str, config: RunConfig, epochs: int, attempt: RunAttempt, step: int) -> None:
        """Begin at a step that is saved already; what earlier lives left unfinished is dropped."""
        self._run, self._config, self._epochs, self._attempt = run, config, epochs, attempt
        self._last, self._last_step = time.monotonic(), step
        self._whole_step: int | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="yolor-checkpoint")
        self._writing: Future[None] | None = None
        self._owed = False
        self._drop_old()

    def due(self, step: int) -> bool:
        """Tell whether the most steps or the longest time without a checkpoint are over; not while one is being written.

        Raises:
            SupersededError: the last one was not written, because another job goes on with the run.

        """
        if self._writing and self._writing.done():
            self._writing.result()
            self._writing = None
        steps = self._config.checkpoint_steps
        late = time.monotonic() - self._last > self._config.checkpoint_minutes * 60
        return self._writing is None and (late or self._owed or 0 < steps <= step - self._last_step)

    def save(self, learner: Learner, progress: Progress) -> None:
        """Copy this moment and begin to write it, when `due` says so; a failure is told, and the next one is tried when it is due."""
        self._writing = self._writer.submit(self._try, *self._copied(learner, progress))

    def finish(self, learner: Learner, progress: Progress) -> None:
        """Write a checkpoint of this moment and wait until it is whole; raises StorageError if it cannot be written."""
        self._settle()
        # The one that a life writes at the end of an epoch is not put at risk by writing it once more.
        if self._whole_step != learner.step:
            self._write(*self._copied(learner, progress))

    def epoch_done(self, learner: Learner, progress: Progress) -> None:
        """Write a checkpoint if one is due after this epoch, or as soon as the one that is being written is; the last one is waited for."""
        self._owed = self._owed or progress.epoch % self._config.checkpoint_epochs == 0
        if progress.epoch == self._epochs:
            self.finish(learner, progress)
        elif self.due(learner.step):
            self.save(learner, progress)

    def close(self) -> None:
        """Wait for what is being written."""
        self._writer.shutdown()

    def _settle(self) -> None:
        if self._writing:
            self._writing.result()
            self._writing = None

    def _copied(self, learner: Learner, progress: Progress) -> tuple[Checkpoint, float]:
        began = time.monotonic()
        checkpoint = take_checkpoint(learner, progress)
        self._last, self._last_step, self._owed = time.monotonic(), learner.step, False
        return checkpoint, self._last - began

    def _try(self, checkpoint: Checkpoint, stalled_s: float) -> None:
        try:
            self._write(checkpoint, stalled_s)
        except StorageError as error:
            logger.error("event=checkpoint_failed step=%d error='%s'; the last good one stays", checkpoint.step, error)

    def _write(self, checkpoint: Checkpoint, stalled_s: float) -> None:
        began = time.monotonic()
        self._attempt.check()
        write_checkpoint(self._run, checkpoint, self._attempt.record.attempt)
        self._whole_step = checkpoint.step
        shown = "event=checkpoint step=%d epoch=%d stalled_s=%.3f written_s=%.3f"
        logger.info(shown, checkpoint.step, checkpoint.state["epoch"], stalled_s, time.monotonic() - began)
        self._attempt.check()
        self._drop_old()

    def _drop_old(self) -> None:
        try:
            prune_checkpoints(self._run, self._attempt.record.attempt)
        except StorageError as error:
            logger.warning("event=prune_failed error='%s'", error)

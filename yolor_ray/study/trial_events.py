"""Events of Ray Tune during a study: they go to the log of the trials, and a stop signal ends the study after checkpoints."""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray import tune

from yolor_ray.cluster.capacity import BUSY, LOG_EVERY_S, SETTLE_S, is_free
from yolor_ray.cluster.stop_signal import StopSignal
from yolor_ray.config import TrainConfig
from yolor_ray.errors import Preempted, SupersededError
from yolor_ray.study.trial_log import TrialLog, TrialOutcome
from yolor_ray.train.elastic.supervisor import MEMORY_MONITOR

logger = logging.getLogger(__name__)

MEMORY_ADVICE = "give the node more memory, or choose a smaller --max_concurrent_trials, --optim.batch or --data.image_px"


class TrialLogger(tune.Callback):
    """Forwards Tune's events to the log of the trials, and logs a wait of trials for resources."""

    def __init__(
        self, config_of: Callable[[Mapping[str, Any]], TrainConfig], trial_log: TrialLog, concurrent: int, resources: Mapping[str, float]
    ) -> None:
        """Prepare for trials of which `concurrent` run at a time, each with a process of these logical resources.

        `config_of` returns the configuration of the trial with the given values.
        """
        self._config_of, self._log, self._concurrent, self._resources = config_of, trial_log, concurrent, resources
        self._full_at = time.monotonic()
        self._logged_at = -LOG_EVERY_S
        self.running: set[str] = set()
        """Names of the trials that run."""
        self.superseded = ""
        """Message of a trial that another job continues."""

    @property
    def outcomes(self) -> list[TrialOutcome]:
        """Outcomes of the ended trials."""
        return self._log.outcomes

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """Log trials that wait for resources of the cluster: Tune says nothing about them."""
        now, waiting = time.monotonic(), sum(trial.status == "PENDING" for trial in trials)
        if not waiting or len(self.running) >= self._concurrent:
            self._full_at = now
        elif now - self._full_at > SETTLE_S and now - self._logged_at > LOG_EVERY_S and not is_free(self._resources):
            self._logged_at = now
            values = (waiting, len(self.running), self._concurrent, BUSY, now - self._full_at)
            logger.warning("event=trials_wait waiting=%d running=%d concurrent=%d reason='%s' waited_s=%.0f", *values)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Log the start of a trial."""
        self.running.add(str(trial))
        self._log.record_start(trial.trial_id, str(trial))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Log a failed attempt that Tune retries."""
        self.running.discard(str(trial))
        self._log.record_retry(str(trial), _last_error_line(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Log a trial that Tune gave up."""
        self._record_end(trial, _last_error_line(trial))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Log a trial that ended: finished, stopped by the scheduler, or failed with a reported reason."""
        self._record_end(trial, (trial.last_result or {}).get("reason", ""))

    def _record_end(self, trial: Any, reason: str) -> None:
        result: Mapping[str, Any] = trial.last_result or {}
        self.running.discard(str(trial))
        self.superseded = self.superseded or result.get("superseded", "")
        if not self.superseded:
            self._log.record_end(trial.trial_id, self._config_of(trial.config), TrialOutcome(dict(trial.config), dict(result), reason))


class StudyStopper(tune.Stopper):
    """Ends a study when all of its running trials have stopped after a checkpoint, or when another job continues it."""

    def __init__(self, stop_signal: StopSignal, stop_actor: Any, trial_logger: TrialLogger) -> None:
        self._stop_signal, self._stop_actor, self._trials = stop_signal, stop_actor, trial_logger
        self._reason, self._has_stopped = "", False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False: no single trial is stopped."""
        return False

    def stop_all(self) -> bool:
        """Pass a stop signal on to the trials, and return True once they have stopped; Tune asks several times a second."""
        if self._trials.superseded:
            return True
        if not self._reason and (reason := self._stop_signal()):
            self._reason = reason
            ray.get(self._stop_actor.stop.remote(reason))
            logger.info("event=stop_requested reason='%s' trials=%d", reason, len(self._trials.running))
        if self._reason and not self._has_stopped:
            self._has_stopped = self._trials.running <= ray.get(self._stop_actor.stopped_trials.remote())
        return self._has_stopped

    def raise_if_stopped(self) -> None:
        """Raise the exception of a study that ended early.

        Raises:
            Preempted: a stop signal ended the study.
            SupersededError: another job continues the study.

        """
        if self._trials.superseded:
            raise SupersededError(f"study: {self._trials.superseded}; that job has the same study, and ends it")
        if self._has_stopped:
            message = f"{self._reason} ended the study; the same command resumes its trials from their newest checkpoints"
            raise Preempted(message, self._reason)


def _last_error_line(trial: Any) -> str:
    """Return the last line of the newest error that Ray stored for a trial, or the advice where Ray killed its process for memory."""
    text = Path(trial.error_file).read_text() if trial.error_file and Path(trial.error_file).exists() else ""
    if MEMORY_MONITOR.search(text):
        return f"Ray killed its process because the memory of the node was full: {MEMORY_ADVICE}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "Ray gave no reason"

"""Keep a run alive on a cluster: whenever a life ends early, begin another with as many workers as there is room for.

Ray Train runs a life and says when one of its workers is gone. It does not decide what comes after: it would first wait for
the lost worker's place, and would give up when a node vanishes while workers connect.
"""

import dataclasses
import logging
import time
from collections.abc import Callable
from typing import Any

import ray
import ray.train
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from yolor_ray.cluster.capacity import POLL_S, wait_for_capacity
from yolor_ray.cluster.stop_signal import StopSignal
from yolor_ray.errors import IntegrityError, StorageError, TrainingError, UserError
from yolor_ray.io.redact import redacted
from yolor_ray.train.checkpoint.checkpoint import complete_checkpoints
from yolor_ray.train.context import TrainContext
from yolor_ray.train.elastic.monitor import ClusterMonitor, start_stop_signal_actor
from yolor_ray.train.loop import TrainOutcome

logger = logging.getLogger(__name__)

MAX_PAUSE_S = 30.0
"""Seconds before another try after many failures in a row; there is no pause after the first."""
REASON_LENGTH = 200

RunAttemptFn = Callable[[TrainContext, int, Any], Any]
"""Runs one life of a job on so many workers, with its stop_actor, and returns what the leading one does."""


def run_with_restarts(context: TrainContext, run_attempt: RunAttemptFn, sigterm: StopSignal) -> Any:
    """Return what a life returns that came to its end, or Ending.STOPPED after SIGTERM.

    Raises the worker's own error if it is one of ours that would come again, and after `cluster.max_failures` failures in a row
    without a new checkpoint between them TrainingError, or StorageError if that was the last.
    """
    cluster, failures, scale_ups, restart_reason = context.config.cluster, 0, 0, ""
    while workers := wait_for_capacity(cluster, sigterm):
        stop_actor, saved = start_stop_signal_actor(), complete_checkpoints(context.run)
        try:
            with ClusterMonitor(stop_actor, cluster, workers, sigterm, scale_ups) as monitor:
                outcome = run_attempt(dataclasses.replace(context, restart_reason=restart_reason), workers, stop_actor)
            if outcome is not TrainOutcome.STOPPED or sigterm():
                return outcome
            restart_reason, scale_ups = ray.get(stop_actor.reason.remote()), scale_ups + monitor.scales_up
        except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as error:
            own, restart_reason, whole = _package_error(error), _reason(error), complete_checkpoints(context.run)
            if own and not (whole and _is_transient(own)):
                raise own from error
            if isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError):
                # Others took the room before Ray did; it is no fault of the run.
                logger.warning("event=capacity_taken workers=%d", workers)
                continue
            failures = 1 if whole != saved else failures + 1
            if failures > cluster.max_failures:
                raise (own or TrainingError(f"{failures} failures in a row without a new checkpoint, the last: {error}")) from error
            logger.warning(
                "event=attempt_failed failures=%d of=%d workers=%d reason='%s'", failures, cluster.max_failures, workers, restart_reason
            )
            _pause(min(2.0 ** (failures - 1) - 1, MAX_PAUSE_S), sigterm)
        finally:
            ray.kill(stop_actor)
    return TrainOutcome.STOPPED


def _pause(seconds: float, notice: StopSignal) -> None:
    end = time.monotonic() + seconds
    while not notice() and time.monotonic() < end:
        time.sleep(POLL_S)


def _worker_errors(error: Exception) -> list[Any]:
    """Return what outcome each worker that failed, without Ray's wrapping."""
    failures = getattr(error, "worker_failures", {}).values()
    return [getattr(found := getattr(failure, "health_check_failure", failure), "cause", found) for failure in failures]


def _package_error(error: Exception) -> UserError | TrainingError | None:
    """Return the error of ours that ended a life, if one did."""
    return next((cause for cause in _worker_errors(error) if isinstance(cause, UserError | TrainingError)), None)


def _is_transient(error: UserError | TrainingError) -> bool:
    """Tell whether another life may do better: where storage is full or away for long, and not where its content is not what it was."""
    return isinstance(error, StorageError) and not isinstance(error, IntegrityError)


def _reason(error: Exception) -> str:
    """Return what ended a life in a line."""
    causes = _worker_errors(error)
    lost = next((cause for cause in causes if isinstance(cause, ray.exceptions.RayActorError | StorageError)), error)
    lines = [line.strip() for line in redacted(str(lost)).splitlines() if line.strip()]
    return " ".join(lines)[:REASON_LENGTH].replace("'", "")

"""Restart a failed run with as many workers as the cluster can schedule.

Ray Train runs one attempt and reports a lost worker. Ray Train's own restart is switched off. That restart would first wait for a
replacement of the lost worker, and would give up when a node vanishes while workers connect.
"""

import dataclasses
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
import ray.train

from yolor_ray.cluster.capacity import POLL_S, wait_for_capacity
from yolor_ray.cluster.ray_internals import HUNG_WORKER_TIMEOUT, WorkerGroupStartupTimeoutError, WorkerHealthCheckTimeoutError
from yolor_ray.cluster.stop_signal import StopSignal
from yolor_ray.errors import IntegrityError, LoaderError, StorageError, TrainingError, UserError
from yolor_ray.io.redact import redact
from yolor_ray.train.checkpoint.attempts import last_step
from yolor_ray.train.checkpoint.checkpoint import complete_checkpoints
from yolor_ray.train.context import TrainContext
from yolor_ray.train.distributed import COLLECTIVE_TIMEOUT_S
from yolor_ray.train.elastic.monitor import ClusterMonitor, start_stop_signal_actor
from yolor_ray.train.loop import TrainOutcome

logger = logging.getLogger(__name__)

MAX_PAUSE_S = 30.0
"""Longest pause before a restart (s), after many failures in a row; there is no pause after the first failure."""
REASON_LENGTH = 200
"""Characters of a restart reason."""
COLLECTIVE_TIMEOUT = re.compile("timed? ?out", re.IGNORECASE)
"""Text of the errors of Gloo and NCCL after COLLECTIVE_TIMEOUT_S."""
MEMORY_MONITOR = re.compile("Memory on the node|memory usage threshold", re.IGNORECASE)
"""Text of Ray about a worker that Ray killed because the memory of its node was full."""
PROCESS_ENDED = re.compile("OOM killer")
"""Text of Ray about a worker whose process ended without a word, as after SIGKILL by the kernel."""
MEMORY_ADVICE = (
    "give the node more memory, or fewer workers (a larger --cluster.cpus_per_worker), or choose a smaller --optim.batch or --data.image_px"
)

RunAttemptFn = Callable[[TrainContext, int, Any], Any]
"""Runs one attempt with a context, a number of workers and a stop-signal actor, and returns the result of rank 0."""


def run_with_restarts(context: TrainContext, run_attempt: RunAttemptFn, stop_signal: StopSignal) -> Any:
    """Run attempts until one finishes and return its result, or TrainOutcome.STOPPED after a stop signal.

    Raises:
        UserError, TrainingError: an error of this package that a restart would repeat, as the worker raised it.
        TrainingError, StorageError: `cluster.max_failures` failures in a row without a new checkpoint between them; StorageError
            if the last failure was one.

    """
    cluster, failures, scale_ups, restart_reason = context.config.cluster, 0, 0, ""
    while workers := wait_for_capacity(cluster, stop_signal):
        stop_actor, checkpoints_before = start_stop_signal_actor(), complete_checkpoints(context.run)
        try:
            with ClusterMonitor(stop_actor, cluster, workers, stop_signal, scale_ups) as monitor:
                outcome = run_attempt(dataclasses.replace(context, restart_reason=restart_reason), workers, stop_actor)
            if outcome is not TrainOutcome.STOPPED or stop_signal():
                return outcome
            restart_reason, scale_ups = ray.get(stop_actor.reason.remote()), scale_ups + monitor.scales_up
        except (ray.train.TrainingFailedError, ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
            monitor.free_resources()
            package_error, checkpoints = _package_error(error), complete_checkpoints(context.run)
            known = _describe_hung_worker(error, context.run, monitor.nodes) or _describe_killed_worker(error, monitor.nodes)
            if package_error and not (checkpoints and _is_transient(package_error)):
                raise package_error from error
            if isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError):
                # No failure of the run.
                reason = "another job took the resources first, or the nodes are too busy to start processes in time"
                logger.warning("event=workers_not_started workers=%d reason='%s'", workers, reason)
                continue
            restart_reason = known or _failure_reason(error)
            failures = 1 if checkpoints != checkpoints_before else failures + 1
            if failures > cluster.max_failures:
                summary = f"{failures} failures in a row without a new checkpoint, the last: {known or error}"
                raise (package_error or TrainingError(summary)) from error
            logger.warning(
                "event=attempt_failed failures=%d max_failures=%d workers=%d reason='%s'",
                *(failures, cluster.max_failures, workers, restart_reason),
            )
            _pause(min(2.0 ** (failures - 1) - 1, MAX_PAUSE_S), stop_signal)
        finally:
            ray.kill(stop_actor)
    return TrainOutcome.STOPPED


def _pause(seconds: float, stop_signal: StopSignal) -> None:
    end = time.monotonic() + seconds
    while not stop_signal() and time.monotonic() < end:
        time.sleep(POLL_S)


def _worker_errors(error: Exception) -> list[Any]:
    """Return the error of each failed worker, without Ray's wrapping."""
    failures = [getattr(failure, "health_check_failure", failure) for failure in getattr(error, "worker_failures", {}).values()]
    return [getattr(failure, "cause", failure) for failure in failures]


def _package_error(error: Exception) -> UserError | TrainingError | None:
    """Return the error of this package that ended an attempt, if there is one."""
    return next((cause for cause in _worker_errors(error) if isinstance(cause, UserError | TrainingError)), None)


def _is_transient(error: UserError | TrainingError) -> bool:
    """Return True if a restart may succeed: a process was killed, or storage was full or out of reach, and its content was not damaged."""
    return isinstance(error, StorageError | LoaderError) and not isinstance(error, IntegrityError)


def _describe_hung_worker(error: Exception, run: str, nodes: Mapping[int, str]) -> str:
    """Return rank, node and step of a worker that hung, empty if the attempt failed otherwise.

    The process of a hung worker answers no health check. If its training function alone hangs, the other workers fail after
    COLLECTIVE_TIMEOUT_S, and the hung one is among those that did not fail.
    """
    failures = getattr(error, "worker_failures", {})
    ranks = [rank for rank, failure in failures.items() if isinstance(failure, WorkerHealthCheckTimeoutError)]
    fault = f"did not answer for {float(os.environ[HUNG_WORKER_TIMEOUT]):.0f} s"
    if not ranks and any(isinstance(cause, RuntimeError) and COLLECTIVE_TIMEOUT.search(str(cause)) for cause in _worker_errors(error)):
        ranks, fault = sorted(nodes.keys() - failures.keys()), f"kept the other workers waiting for {COLLECTIVE_TIMEOUT_S} s"
    return f"{_name_workers(ranks, nodes)} {fault} after step {last_step(run)}" if ranks else ""


def _describe_killed_worker(error: Exception, nodes: Mapping[int, str]) -> str:
    """Return rank and node of a worker that ended for want of memory, and the advice, empty if the attempt failed otherwise.

    The kernel leaves no reason where it kills a process: that reason is one of several.
    """
    texts = {
        rank: str(getattr(failure, "health_check_failure", failure)) for rank, failure in getattr(error, "worker_failures", {}).items()
    }
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return f"Ray killed the controller of the workers because the memory of its node was full: {MEMORY_ADVICE}"
    for pattern, fault in (
        (MEMORY_MONITOR, "was killed by Ray because the memory of its node was full"),
        (PROCESS_ENDED, "ended without a word: killed by hand, or by the kernel for want of memory (`dmesg` says so), or crashed"),
    ):
        if ranks := [rank for rank, text in texts.items() if pattern.search(text)]:
            return f"{_name_workers(ranks, nodes)} {fault}: {MEMORY_ADVICE}"
    return ""


def _name_workers(ranks: list[int], nodes: Mapping[int, str]) -> str:
    """Return ranks with the addresses of their nodes; `nodes` has the id of each rank's node."""
    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    return " or ".join(f"rank {rank} on node {addresses.get(nodes.get(rank, ''), 'unknown')}" for rank in ranks)


def _failure_reason(error: Exception) -> str:
    """Return the cause of a failed attempt in one line of at most REASON_LENGTH characters."""
    cause = next(
        (cause for cause in _worker_errors(error) if isinstance(cause, ray.exceptions.RayActorError | StorageError | LoaderError)), error
    )
    lines = [line.strip() for line in redact(str(cause)).splitlines() if line.strip()]
    return " ".join(lines)[:REASON_LENGTH].replace("'", "")

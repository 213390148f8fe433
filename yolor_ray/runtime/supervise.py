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

from yolor_ray import storage
from yolor_ray.errors import TrainingError, UserError
from yolor_ray.redact import redacted
from yolor_ray.runtime.checkpoint import CHECKPOINTS
from yolor_ray.runtime.job import Job
from yolor_ray.runtime.loop import Ending
from yolor_ray.runtime.notice import Notice
from yolor_ray.runtime.room import wait_for_room
from yolor_ray.runtime.watch import Watch, open_post

logger = logging.getLogger(__name__)

LONGEST_PAUSE_S = 30.0
"""Seconds before another try after many failures in a row; there is no pause after the first."""
REASON_LENGTH = 200

Fit = Callable[[Job, int, Any], Any]
"""Runs one life of a job on so many workers, with its post, and returns what the leading one does."""


def live_on(job: Job, fit: Fit, sigterm: Notice) -> Any:
    """Return what a life returns that came to its end, or Ending.STOPPED after SIGTERM.

    Raises the worker's own error if it is one of ours, and TrainingError after `cluster.max_failures` failures in a row
    without a new checkpoint between them.
    """
    cluster, failures, after = job.config.cluster, 0, ""
    while workers := wait_for_room(cluster, sigterm):
        post, saved = open_post(), _checkpoints(job)
        try:
            with Watch(post, cluster, workers, sigterm):
                ended = fit(dataclasses.replace(job, after=after), workers, post)
            if ended is not Ending.STOPPED or sigterm():
                return ended
            after = ray.get(post.reason.remote())
        except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as error:
            after = _reason(error)
            if isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError):
                # Others took the room before Ray did; it is no fault of the run.
                logger.warning("event=no_room workers=%d", workers)
                continue
            failures = 1 if _checkpoints(job) != saved else failures + 1
            if failures > cluster.max_failures:
                raise TrainingError(f"{failures} failures in a row without a new checkpoint, the last: {error}") from error
            logger.warning("event=life_lost failures=%d of=%d workers=%d reason='%s'", failures, cluster.max_failures, workers, after)
            time.sleep(min(2.0 ** (failures - 1) - 1, LONGEST_PAUSE_S))
        finally:
            ray.kill(post)
    return Ending.STOPPED


def _checkpoints(job: Job) -> list[str]:
    return storage.list_names(storage.join(job.run, CHECKPOINTS))


def _reason(error: Exception) -> str:
    """Return what ended a life in a line; raise it instead if it is one of our own errors."""
    causes = [getattr(failure, "cause", failure) for failure in getattr(error, "worker_failures", {}).values()]
    for cause in causes:
        if isinstance(cause, UserError | TrainingError):
            raise cause from error
    lost = next((cause for cause in causes if isinstance(cause, ray.exceptions.RayActorError)), error)
    lines = [line.strip() for line in redacted(str(lost)).splitlines() if line.strip()]
    return " ".join(lines)[:REASON_LENGTH].replace("'", "")

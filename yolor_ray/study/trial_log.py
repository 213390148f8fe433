"""Log of a study's trials: their outcomes, one log line per event, and a marker in the run folder of a stopped trial.

The module is free of Ray; `trials.TrialLogger` forwards the events of Ray Tune.
"""

import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from yolor_ray.config import TrainConfig
from yolor_ray.io import manifest, storage
from yolor_ray.io.weights_url import WEIGHTS_FOLDER

logger = logging.getLogger(__name__)

STOPPED_FILE = "stopped.json"
"""Marker in the run folder of a trial that a scheduler stopped early."""


def run_url(trial: TrainConfig) -> str:
    """Return the URL of a trial's run folder."""
    return storage.join(trial.run.storage, trial.run.name)


@dataclass(frozen=True)
class TrialOutcome:
    """Outcome of one trial."""

    values: dict[str, Any]
    """Values that Tune chose for the trial."""
    metrics: dict[str, Any]
    """Last reported metrics; empty without a report."""
    reason: str
    """Reason of the failure; empty for a trial that did not fail."""


class TrialLog:
    """Outcomes of the ended trials, and the remaining time of the others."""

    def __init__(self, count: int, concurrent: int) -> None:
        """Prepare for `count` trials, of which `concurrent` run at a time."""
        self._count, self._concurrent = count, concurrent
        self._started_at: dict[str, float] = {}
        self._outcomes: dict[str, TrialOutcome] = {}
        self._busy_s = 0.0

    @property
    def outcomes(self) -> list[TrialOutcome]:
        """Outcomes in the order in which the trials started."""
        return [self._outcomes[trial_id] for trial_id in self._started_at if trial_id in self._outcomes]

    def record_start(self, trial_id: str, name: str) -> None:
        """Log the start of a trial; the first start counts for its duration and its place in the order."""
        self._started_at.setdefault(trial_id, time.monotonic())
        logger.info("event=trial_started trial=%s", name)

    def record_retry(self, name: str, reason: str) -> None:
        """Log a failed attempt of a trial that starts again."""
        logger.warning("event=trial_retried trial=%s reason='%s'", name, reason)

    def record_end(self, trial_id: str, config: TrainConfig, outcome: TrialOutcome) -> None:
        """Keep and log the outcome of a trial; mark the run of a trial that a scheduler stopped."""
        now = time.monotonic()
        self._busy_s += now - self._started_at.setdefault(trial_id, now)
        self._outcomes[trial_id] = outcome
        name, epoch = config.run.name, outcome.metrics.get("epoch", 0)
        ap, done, eta = outcome.metrics.get("AP", math.nan), len(self._outcomes), self._remaining_time()
        if outcome.reason:
            values = (name, epoch, done, self._count, eta, outcome.reason)
            logger.info("event=trial_failed trial=%s epoch=%s done=%d/%d eta='%s' reason='%s'", *values)
        elif epoch < config.optim.epochs:
            _mark_stopped(config, outcome.metrics)
            logger.info("event=trial_stopped trial=%s AP=%.4f epoch=%s done=%d/%d eta='%s'", name, ap, epoch, done, self._count, eta)
        else:
            logger.info("event=trial_done trial=%s AP=%.4f epoch=%s done=%d/%d eta='%s'", name, ap, epoch, done, self._count, eta)

    def _remaining_time(self) -> timedelta:
        ended = len(self._outcomes)
        return timedelta(seconds=round(self._busy_s / ended * (self._count - ended) / self._concurrent))


def _mark_stopped(config: TrainConfig, metrics: Mapping[str, Any]) -> None:
    """Write the marker by which a resumed study does not train the trial again."""
    run = run_url(config)
    if not manifest.is_published(storage.join(run, WEIGHTS_FOLDER)):
        content = {"epoch": metrics.get("epoch", 0), "AP": metrics.get("AP")}
        storage.write_bytes(storage.join(run, STOPPED_FILE), json.dumps(content).encode())

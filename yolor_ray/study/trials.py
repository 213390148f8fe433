"""Run trainings beside each other by Ray Tune, as many at a time as the cluster has room for.

A trial without workers trains in its own process, on the CPUs or the GPU that Ray gives it: nothing is asked for twice, so
nothing can wait for itself. A trial with workers is a Ray Train run, whose driver takes next to nothing and whose workers are
counted before any trial starts. All state is in the run folders: a study that goes on starts its trials again under their
names, and they go on from their checkpoints. Tune keeps nothing that outlives the job.
"""

import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import TrialScheduler

from yolor_ray.cluster.block_source import StreamedSource, cluster_source
from yolor_ray.cluster.capacity import READER_CPUS, count_fitting
from yolor_ray.cluster.connect import start_ray
from yolor_ray.config import ClusterConfig, TrainConfig
from yolor_ray.data.loading.loader import Source
from yolor_ray.data.shards.dataset import Dataset
from yolor_ray.errors import ConfigError, LedgerError, NonFiniteLossError, StorageError, SupersededError, UserError
from yolor_ray.io import manifest, storage
from yolor_ray.train.checkpoint.checkpoint import CHECKPOINTS
from yolor_ray.train.run import train
from yolor_ray.train.run_log import read_metrics

logger = logging.getLogger(__name__)

DRIVER_CPUS = 0.001
"""Logical CPUs of a trial whose work is done by workers: its own process only waits."""
TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}
"""Each trial writes its own metrics into its run folder, and Ctrl-C ends the job."""

STOPPED_FILE = "stopped.json"
"""Says in a run's folder that a scheduler ended it early."""
FAILED_AP = -1.0
"""What a searcher is told of a failed trial: worse than any."""

Values = Mapping[str, Any]


@dataclass(frozen=True)
class TrialOutcome:
    """What became of a trial."""

    values: dict[str, Any]
    """What Tune chose for it."""
    metrics: dict[str, Any]
    """What it reported last; empty if it never did."""
    reason: str
    """Why it failed; empty if it did not."""


@dataclass(frozen=True)
class TrialPlan:
    """Say what a study's trials have in common."""

    config_of: Callable[[Values], TrainConfig]
    """Returns the run that a trial's values stand for; its name is the trial's."""
    cluster: ClusterConfig
    """What the study was told that each trial trains on."""
    count: int
    """Trials in all, for the time left."""
    max_concurrent_trials: int = 0
    """Most at a time; 0 takes as many as there is room for."""


def start_cluster(cluster: ClusterConfig) -> None:
    """Join the cluster that RAY_ADDRESS names, or start Ray here, as trials need it."""
    for name, value in TUNE_SETTINGS.items():
        os.environ.setdefault(name, value)
    # It misses the files that are switched off here.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    # Ray Train asks the dashboard whether a stopped trial's workers are gone, and frees what they held.
    start_ray(log_to_driver=True, dashboard=cluster.worker_range[1] > 0, allow_unauthenticated=cluster.allow_unauthenticated)


def trial_cluster(cluster: ClusterConfig) -> ClusterConfig:
    """Return the cluster settings of one trial: without workers, it computes on one thread unless told otherwise.

    It keeps to the fewest workers, as the room for more is other trials'. It is retried as a whole, from its checkpoint: were its
    workers restarted as well, retries would multiply.
    """
    threads = cluster.compute_threads or int(cluster.worker_range[1] == 0)
    return replace(cluster, workers=str(cluster.worker_range[0]), compute_threads=threads, max_failures=0)


def shared_source(dataset: Dataset, cluster: ClusterConfig) -> Source | None:
    """Return the training set in Ray's object store, where all trials of a node share it, or None if each must read it itself.

    What is shared is encoded: a trial decodes an image once and keeps it. A data set too large for the store is streamed by
    Ray Data to trials with workers; without workers every CPU may be a trial's, and Ray Data's reads would wait for ever.
    """
    source = cluster_source(dataset)
    return None if isinstance(source, StreamedSource) and cluster.worker_range[1] == 0 else source


def run_trials(
    plan: TrialPlan,
    space: dict[str, Any],
    source: Source | None,
    *,
    samples: int = 1,
    scheduler: TrialScheduler | None = None,
    searcher: tune.search.Searcher | None = None,
) -> list[TrialOutcome]:
    """Train all trials of the space and return what became of them; one that fails again and again does not stop the others."""
    cluster = trial_cluster(plan.cluster)
    room = _schedulable_trials(cluster, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    at_a_time = min(room, plan.max_concurrent_trials or room, plan.count)
    logger.info("event=trials count=%d at_a_time=%d room=%d each='%s'", plan.count, at_a_time, room, _resources(cluster))
    trainable = tune.with_parameters(_trial, plan=plan, source=source)
    ledger = TrialLogger(plan, at_a_time)
    with tempfile.TemporaryDirectory(prefix="yolor-tune-") as folder:
        tune.Tuner(
            tune.with_resources(trainable, _resources(cluster)),
            param_space=space,
            tune_config=tune.TuneConfig(
                num_samples=samples,
                max_concurrent_trials=at_a_time,
                scheduler=scheduler,
                search_alg=searcher,
                trial_name_creator=lambda trial: plan.config_of(trial.config).run.name,
                trial_dirname_creator=lambda trial: trial.trial_id,
                # A process takes seconds to start; one that trained in itself can train again.
                reuse_actors=cluster.worker_range[1] == 0,
            ),
            run_config=tune.RunConfig(
                name="study",
                storage_path=folder,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=plan.cluster.max_failures),
                callbacks=[ledger],
            ),
        ).fit()
    return ledger.outcomes


def _trial(values: dict[str, Any], *, plan: TrialPlan, source: Source | None) -> None:
    """Train one run in a process of its own, and report each validation to Tune."""
    config = plan.config_of(values)
    logging.getLogger("yolor_ray").setLevel(logging.WARNING)
    run = storage.join(config.run.storage, config.run.name)
    stopped = storage.exists(storage.join(run, STOPPED_FILE))
    if stopped or manifest.is_published(storage.join(run, "weights")):
        _report_again(run, config.optim.epochs)
    if stopped:
        return
    try:
        metrics = _metrics(config, source)
    except StorageError:
        raise
    except (UserError, NonFiniteLossError, LedgerError, SupersededError) as error:
        # The same would happen again: there is nothing to retry. Tune wants its numbers from failures too.
        tune.report({"reason": f"{type(error).__name__}: {error}", "epoch": 0, "AP": FAILED_AP})
        return
    # A finished run needs them no more, and a study has many runs.
    storage.delete(storage.join(run, CHECKPOINTS))
    tune.report({"epoch": config.optim.epochs, **metrics})


def _metrics(config: TrainConfig, source: Source | None) -> dict[str, float]:
    """Train and return the numbers of the weights."""
    if config.cluster.worker_range[1] > 0:
        return train(config, source=source, callbacks=[TuneReportCallback()])["metrics"]
    return train(config, source=source, report=tune.report)["metrics"]


def _report_again(run: str, epochs: int) -> None:
    """Report what a run measured before its end, so that a scheduler judges others at each epoch by what it was then."""
    for row in read_metrics(run):
        if "AP" in row and row["epoch"] < epochs:
            tune.report(row)


def _resources(cluster: ClusterConfig) -> dict[str, float]:
    """Return what one trial's own process takes."""
    if cluster.worker_range[1] > 0:
        return {"CPU": DRIVER_CPUS}
    return {"CPU": float(cluster.compute_threads), **({"GPU": 1.0} if cluster.gpu else {})}


def _schedulable_trials(cluster: ClusterConfig, nodes: Sequence[Mapping[str, float]]) -> int:
    """Return how many trials fit the nodes, or raise ConfigError if not a single one does: Ray would wait for ever."""
    workers = cluster.worker_range[0]
    each = _resources(cluster) if workers == 0 else {"GPU": 1.0} if cluster.gpu else {"CPU": cluster.cpus_per_worker}
    places = sum(count_fitting(node, each) for node in nodes)
    room = places // max(workers, 1)
    needed = " and ".join(f"{amount:g} {kind}s" for kind, amount in each.items())
    what = (
        f"one trial needs {needed}" if workers == 0 else f"one trial needs {workers} workers of {needed}, and {READER_CPUS:g} CPUs to read"
    )
    if workers > 0:
        cpus = workers * each.get("CPU", 0) + READER_CPUS
        room = min(room, count_fitting({"CPU": sum(node.get("CPU", 0) for node in nodes)}, {"CPU": cpus}))
    if room < 1:
        has = "; ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise ConfigError(f"cluster: {what}, found nodes of {has}")
    return room


class TrialLogger(tune.Callback):
    """Write down what becomes of each trial, and say so, with the time that the rest will take."""

    def __init__(self, plan: TrialPlan, at_a_time: int) -> None:
        self._outcomes: dict[str, TrialOutcome] = {}
        self._plan, self._at_a_time = plan, at_a_time
        self._began: dict[str, float] = {}
        self._spent_s = 0.0

    @property
    def outcomes(self) -> list[TrialOutcome]:
        """In the order in which the trials began."""
        order = list(self._began)
        return [outcome for _, outcome in sorted(self._outcomes.items(), key=lambda item: order.index(item[0]))]

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._began.setdefault(trial.trial_id, time.monotonic())
        logger.info("event=trial_started trial=%s", trial)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        logger.warning("event=trial_retried trial=%s reason='%s'", trial, _last_line(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._add(trial, _last_line(trial))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._add(trial, (trial.last_result or {}).get("reason", ""))

    def _add(self, trial: Any, reason: str) -> None:
        metrics = dict(trial.last_result or {})
        stopped = not reason and metrics.get("epoch", 0) < self._plan.config_of(trial.config).optim.epochs
        self._outcomes[trial.trial_id] = TrialOutcome(dict(trial.config), metrics, reason)
        if stopped:
            self._mark(trial, metrics)
        now = time.monotonic()
        self._spent_s += now - self._began.setdefault(trial.trial_id, now)
        done, count = len(self._outcomes), self._plan.count
        eta = timedelta(seconds=round(self._spent_s / done * (count - done) / self._at_a_time))
        what = f"failed reason='{reason}'" if reason else f"{'stopped' if stopped else 'done'} AP={metrics.get('AP', math.nan):.4f}"
        logger.info("event=trial_%s trial=%s epoch=%s done=%d/%d eta=%s", what, trial, metrics.get("epoch", 0), done, count, eta)

    def _mark(self, trial: Any, metrics: Mapping[str, Any]) -> None:
        """Leave a word for a job that goes on: what a scheduler has stopped is not trained again."""
        config = self._plan.config_of(trial.config)
        run = storage.join(config.run.storage, config.run.name)
        if not manifest.is_published(storage.join(run, "weights")):
            told = {"epoch": metrics.get("epoch", 0), "AP": metrics.get("AP")}
            storage.write_bytes(storage.join(run, STOPPED_FILE), json.dumps(told).encode())


def _last_line(trial: Any) -> str:
    """Return the newest failure of a trial in one line, as far as Ray knows it."""
    text = Path(trial.error_file).read_text() if trial.error_file and Path(trial.error_file).exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "Ray gave no reason"

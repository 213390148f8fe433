"""Run the trials of a study in parallel by Ray Tune, as many at a time as the cluster can schedule.

A trial without workers trains in its own process, on the CPUs or the GPU that Ray assigns. No resource is reserved twice, so trials
cannot deadlock. A trial with workers is a Ray Train run: its driver takes almost no CPU, and its workers are counted before any trial
starts. All state is in the run folders. A resumed study starts its trials again under their names, and each continues from its newest
checkpoint. Tune keeps no state after the job.
"""

import contextlib
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import TrialScheduler

from yolor_ray.cluster import ray_internals
from yolor_ray.cluster.capacity import count_fitting, worker_resources
from yolor_ray.cluster.connect import start_ray
from yolor_ray.cluster.stop_signal import ProcessStopSignal
from yolor_ray.config import ClusterConfig, TrainConfig
from yolor_ray.data.loading.loader import Source
from yolor_ray.errors import (
    CapacityError,
    ConfigError,
    LedgerError,
    NonFiniteLossError,
    Preempted,
    StorageError,
    SupersededError,
    UserError,
)
from yolor_ray.io import manifest, storage
from yolor_ray.io.weights_url import WEIGHTS_FOLDER
from yolor_ray.study.trial_events import StudyStopper, TrialLogger
from yolor_ray.study.trial_log import STOPPED_FILE, TrialLog, TrialOutcome, run_url
from yolor_ray.train.checkpoint.checkpoint import CHECKPOINTS
from yolor_ray.train.elastic.monitor import RemoteStopSignal, start_stop_signal_actor
from yolor_ray.train.run import train
from yolor_ray.train.run_log import read_metrics

logger = logging.getLogger(__name__)

DRIVER_CPUS = 0.001
"""Logical CPUs of the process of a trial with workers: that process only waits."""
TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}
"""Environment variables of Tune: each trial writes its own metrics into its run folder, and Ctrl-C ends the job."""
CREDENTIALS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"}
"""Environment variables that Tune must not copy from the driver to trials."""
FAILED_AP = -1.0
"""AP of a failed trial for a searcher: below every AP."""

Values = Mapping[str, Any]


@dataclass(frozen=True)
class TrialPlan:
    """Common inputs of a study's trials."""

    config_of: Callable[[Values], TrainConfig]
    """Returns the configuration of the trial with these values; its run.name is the trial's name."""
    cluster: ClusterConfig
    """The study's own cluster settings."""
    count: int
    """Number of trials, for the remaining time."""
    max_concurrent_trials: int = 0
    """Maximum number of trials at a time; 0 takes as many as the cluster can schedule."""


def start_cluster(cluster: ClusterConfig) -> None:
    """Join the cluster that RAY_ADDRESS names, or start Ray on this machine, with the settings that trials need."""
    for name, value in TUNE_SETTINGS.items():
        os.environ.setdefault(name, value)
    # Ray writes the variables that Tune copies to a trial into its log. Trials have the credentials of their node, as all workers do.
    ray_internals.variables_copied_to_trials.difference_update(CREDENTIALS)
    ray_internals.retry_trials_killed_for_memory()
    # The analysis warns about the result files that TUNE_SETTINGS switches off.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    # Ray Train asks the dashboard whether a stopped trial's workers have ended, and frees their resources.
    start_ray(log_to_driver=True, dashboard=cluster.worker_range[1] > 0, allow_unauthenticated=cluster.allow_unauthenticated)


def trial_cluster(cluster: ClusterConfig) -> ClusterConfig:
    """Return the cluster settings of one trial: by default, a trial without workers computes on one thread.

    A trial takes the minimum number of workers, because the remaining capacity is for other trials. Tune retries the whole trial from its
    checkpoint. Restarts of its workers on top would multiply the retries.
    """
    threads = cluster.compute_threads or int(cluster.worker_range[1] == 0)
    return replace(cluster, workers=str(cluster.worker_range[0]), compute_threads=threads, max_failures=0)


def run_trials(
    plan: TrialPlan,
    space: dict[str, Any],
    source: Source | None,
    *,
    samples: int = 1,
    scheduler: TrialScheduler | None = None,
    searcher: tune.search.Searcher | None = None,
) -> list[TrialOutcome]:
    """Train all trials of the search space and return their outcomes; a trial that keeps failing does not stop the others.

    Raises:
        Preempted: SIGTERM, SIGINT or SIGHUP stopped the study; each trial that ran wrote a checkpoint.
        SupersededError: another job continues the study.

    """
    cluster = trial_cluster(plan.cluster)
    resources, concurrent = _process_resources(cluster), _concurrent_trials(plan, cluster)
    tune_config = tune.TuneConfig(
        num_samples=samples,
        max_concurrent_trials=concurrent,
        scheduler=scheduler,
        search_alg=searcher,
        trial_name_creator=lambda trial: plan.config_of(trial.config).run.name,
        trial_dirname_creator=lambda trial: trial.trial_id,
        # A process takes seconds to start; the process of a trial without workers can train the next trial.
        reuse_actors=cluster.worker_range[1] == 0,
    )
    stop_actor = start_stop_signal_actor()
    trial_logger = TrialLogger(plan.config_of, TrialLog(plan.count, concurrent), concurrent, resources)
    trainable = tune.with_resources(tune.with_parameters(_trial, plan=plan, source=source, stop_actor=stop_actor), resources)
    with tempfile.TemporaryDirectory(prefix="yolor-tune-") as folder, ProcessStopSignal() as stop_signal:
        stopper = StudyStopper(stop_signal, stop_actor, trial_logger)
        run_config = tune.RunConfig(
            name="study",
            storage_path=folder,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=plan.cluster.max_failures),
            callbacks=[trial_logger],
            stop=stopper,
        )
        tune.Tuner(trainable, param_space=space, tune_config=tune_config, run_config=run_config).fit()
    ray.kill(stop_actor)
    stopper.raise_if_stopped()
    return trial_logger.outcomes


def _trial(values: dict[str, Any], *, plan: TrialPlan, source: Source | None, stop_actor: Any) -> None:
    """Train one trial in its own process, and report each validation to Tune."""
    config = plan.config_of(values)
    run = run_url(config)
    stopped = storage.exists(storage.join(run, STOPPED_FILE))
    if stopped or manifest.is_published(storage.join(run, WEIGHTS_FOLDER)):
        # A scheduler compares trials at equal epochs, so the earlier validations are reported again.
        for row in read_metrics(run):
            if "AP" in row and row["epoch"] < config.optim.epochs:
                tune.report(row)
    if stopped:
        return
    try:
        with _warnings_only():
            metrics = _train(config, source, stop_actor)
    except StorageError:
        raise
    except Preempted:
        ray.get(stop_actor.add_stopped_trial.remote(config.run.name))
        # Tune would count a return or an error as the end of the trial. Tune ends this process when all trials have stopped.
        threading.Event().wait()
    except SupersededError as error:
        tune.report({"superseded": str(error), "epoch": 0, "AP": FAILED_AP})
        return
    except (UserError, NonFiniteLossError, LedgerError) as error:
        # A retry would fail in the same way. Tune expects metrics from failed trials too.
        tune.report({"reason": f"{type(error).__name__}: {error}", "epoch": 0, "AP": FAILED_AP})
        return
    # A finished run needs its checkpoints no more, and a study has many runs.
    storage.delete(storage.join(run, CHECKPOINTS))
    tune.report({"epoch": config.optim.epochs, **metrics})


@contextlib.contextmanager
def _warnings_only() -> Iterator[None]:
    """Log no progress of this package within the block: the study logs each trial in the driver."""
    package = logging.getLogger("yolor_ray")
    level = package.level
    package.setLevel(logging.WARNING)
    try:
        yield
    finally:
        package.setLevel(level)


def _train(config: TrainConfig, source: Source | None, stop_actor: Any) -> dict[str, float]:
    """Train and return the metrics of the weights; raise Preempted after a checkpoint when the study stops."""
    if reason := ray.get(stop_actor.reason.remote()):
        raise Preempted(f"{run_url(config)}: not started", reason)
    stop_signal = RemoteStopSignal(stop_actor)
    if config.cluster.worker_range[1] == 0:
        return train(config, source=source, report=tune.report, stop_signal=stop_signal)["metrics"]
    while True:
        try:
            return train(config, source=source, callbacks=[TuneReportCallback()], stop_signal=stop_signal)["metrics"]
        except CapacityError as error:
            # The other trials may take hours, and then there is capacity.
            logger.warning("event=trial_waits trial=%s reason='%s'", config.run.name, error)


def _concurrent_trials(plan: TrialPlan, cluster: ClusterConfig) -> int:
    """Return the number of trials at a time, and log it."""
    schedulable = _schedulable_trials(cluster, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    concurrent = min(schedulable, plan.max_concurrent_trials or schedulable, plan.count)
    resources = _process_resources(cluster)
    logger.info("event=trials_planned count=%d concurrent=%d schedulable=%d resources='%s'", plan.count, concurrent, schedulable, resources)
    return concurrent


def _process_resources(cluster: ClusterConfig) -> dict[str, float]:
    """Return the logical resources of a trial's own process."""
    if cluster.worker_range[1] > 0:
        return {"CPU": DRIVER_CPUS}
    return {"CPU": float(cluster.compute_threads), **({"GPU": 1.0} if cluster.gpu else {})}


def _schedulable_trials(cluster: ClusterConfig, nodes: Sequence[Mapping[str, float]]) -> int:
    """Return the number of trials that fit the nodes' resources.

    Raises:
        ConfigError: not a single trial fits; Ray would wait without end.

    """
    workers = cluster.worker_range[0]
    demand = worker_resources(cluster) if workers else _process_resources(cluster)
    trials = sum(count_fitting(node, demand) for node in nodes) // max(workers, 1)
    needed = " and ".join(f"{amount:g} {resource}s" for resource, amount in demand.items())
    if workers:
        needed = f"{workers} workers of {needed}"
        cpus = workers * demand.get("CPU", 0) + DRIVER_CPUS
        trials = min(trials, count_fitting({"CPU": sum(node.get("CPU", 0) for node in nodes)}, {"CPU": cpus}))
    if trials < 1:
        available = "; ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise ConfigError(f"cluster: found nodes of {available}, expected {needed} for one trial")
    return trials

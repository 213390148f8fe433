"""Trials on a shared cluster: their number at a time, their resources, their failures, and their reports to Tune."""

import contextlib
import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
from ray import tune

from stop_actor import StopActor
from yolor_ray.config import ClusterConfig, OptimConfig, RunConfig, TrainConfig
from yolor_ray.errors import CapacityError, ConfigError, NonFiniteLossError, Preempted, StorageError, SupersededError, WeightsError
from yolor_ray.io import manifest, storage
from yolor_ray.study import trials
from yolor_ray.study.trial_log import STOPPED_FILE
from yolor_ray.study.trials import TrialPlan, trial_cluster
from yolor_ray.train.run_log import METRICS_FILE, read_metrics


@pytest.mark.parametrize(
    ("cluster", "nodes", "expected"),
    [
        (ClusterConfig(), [{"CPU": 2}], 2),
        (ClusterConfig(compute_threads=2), [{"CPU": 5}], 2),
        (ClusterConfig(compute_threads=3), [{"CPU": 4}, {"CPU": 5}, {"CPU": 2}], 2),
        (ClusterConfig(gpu=True), [{"CPU": 64, "GPU": 8}], 8),
        (ClusterConfig(gpu=True), [{"CPU": 3, "GPU": 8}, {"CPU": 16}], 3),
        (ClusterConfig(workers="1", cpus_per_worker=0.5), [{"CPU": 2}], 3),
        (ClusterConfig(workers="2", cpus_per_worker=0.5), [{"CPU": 2}], 1),
        (ClusterConfig(workers="2", cpus_per_worker=1), [{"CPU": 8}, {"CPU": 8}], 7),
        (ClusterConfig(workers="2-8", gpu=True), [{"CPU": 16, "GPU": 4}, {"CPU": 16, "GPU": 3}], 3),
        (ClusterConfig(workers="4", gpu=True), [{"CPU": 1, "GPU": 8}], 2),
    ],
)
def test_the_number_of_concurrent_trials_fits_the_nodes_with_workers_and_trial_processes(cluster, nodes, expected):
    assert trials._schedulable_trials(trial_cluster(cluster), nodes) == expected


@pytest.mark.parametrize(
    ("cluster", "nodes", "message"),
    [
        (ClusterConfig(gpu=True), [{"CPU": 8}], "found nodes of 8 CPUs and 0 GPUs, expected 1 CPUs and 1 GPUs for one trial"),
        (
            ClusterConfig(compute_threads=8),
            [{"CPU": 4}, {"CPU": 4}],
            "found nodes of 4 CPUs and 0 GPUs; 4 CPUs and 0 GPUs, expected 8 CPUs for one trial",
        ),
        (
            ClusterConfig(workers="4", cpus_per_worker=1),
            [{"CPU": 3}],
            "found nodes of 3 CPUs and 0 GPUs, expected 4 workers of 1 CPUs for one trial",
        ),
    ],
)
def test_a_cluster_that_cannot_schedule_a_single_trial_is_refused(cluster, nodes, message):
    with pytest.raises(ConfigError, match=f"cluster: {message}"):
        trials._schedulable_trials(trial_cluster(cluster), nodes)


def test_the_process_of_a_trial_with_workers_takes_almost_no_cpu():
    assert trials._process_resources(ClusterConfig(workers="2"))["CPU"] < 0.01


def test_a_trial_without_workers_computes_on_as_many_threads_as_it_reserves():
    for threads, reserved in ((0, 1), (1, 1), (3, 3)):
        cluster = trial_cluster(ClusterConfig(compute_threads=threads))
        assert trials._process_resources(cluster) == {"CPU": reserved}
        assert cluster.compute_threads == reserved
    assert trial_cluster(ClusterConfig(workers="2")).compute_threads == 0, "workers share their node's cores as in a single run"


@pytest.fixture
def reports(monkeypatch) -> list[dict]:
    """Collect the reports of a trial to Tune."""
    rows: list[dict] = []
    monkeypatch.setattr(tune, "report", rows.append)
    return rows


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    return TrainConfig(optim=OptimConfig(epochs=4), run=RunConfig(storage=f"{tmp_path}/trials", name="a"))


@pytest.fixture(autouse=True)
def answers_at_once(monkeypatch) -> None:
    monkeypatch.setattr(trials.ray, "get", lambda answer: answer)


def run_trial(monkeypatch, config: TrainConfig, train) -> None:
    monkeypatch.setattr(trials, "train", train)
    trials._trial({}, plan=TrialPlan(lambda values: config, config.cluster, 1), source=None, stop_actor=StopActor())


def failing_train(error: Exception):
    def train(*_: object, **__: object) -> None:
        raise error

    return train


def test_a_trial_that_another_job_continues_is_reported_as_such(monkeypatch, reports, config):
    run_trial(monkeypatch, config, failing_train(SupersededError("a: attempt 1 found attempt 2")))
    assert reports == [{"superseded": "a: attempt 1 found attempt 2", "epoch": 0, "AP": -1.0}]


@pytest.mark.parametrize("error", [NonFiniteLossError("step 9"), WeightsError("other anchors"), ConfigError("optim.lr: found 9")])
def test_a_failure_that_would_repeat_is_reported_and_not_retried(monkeypatch, reports, config, error):
    run_trial(monkeypatch, config, failing_train(error))
    assert reports == [{"reason": f"{type(error).__name__}: {error}", "epoch": 0, "AP": -1.0}]


@pytest.mark.parametrize("error", [StorageError("s3://b/k: timed out"), RuntimeError("out of memory")])
def test_a_failure_that_may_be_transient_is_raised_for_tune_to_retry(monkeypatch, reports, config, error):
    with pytest.raises(type(error)):
        run_trial(monkeypatch, config, failing_train(error))
    assert reports == []


@pytest.mark.parametrize("error", [None, NonFiniteLossError("step 9"), RuntimeError("out of memory")])
def test_a_trial_logs_warnings_only_and_leaves_the_log_level_unchanged(monkeypatch, caplog, reports, config, error):
    package = logging.getLogger("yolor_ray")
    caplog.set_level(logging.INFO, package.name)
    levels = []

    def train(*_: object, **__: object) -> dict:
        levels.append(package.level)
        if error:
            raise error
        return {"metrics": {"AP": 0.3}}

    with contextlib.suppress(RuntimeError):
        run_trial(monkeypatch, config, train)
    assert (levels, package.level) == ([logging.WARNING], logging.INFO)


def test_a_finished_trial_reports_its_earlier_validations_again(monkeypatch, reports, config):
    """A new scheduler then compares other trials with this one at equal epochs."""
    rows = [{"epoch": 1}, {"epoch": 2, "AP": 0.1}, {"epoch": 4, "AP": 0.3}]
    run = f"{config.run.storage}/a"
    storage.write_bytes(f"{run}/{METRICS_FILE}", b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    manifest.publish(f"{run}/weights", {"config.json": b"{}"})
    run_trial(monkeypatch, config, lambda *_, **__: {"run": run, "metrics": {"AP": 0.3}})
    assert [(row["epoch"], row["AP"]) for row in reports] == [(2, 0.1), (4, 0.3)]
    assert read_metrics(run) == rows


def test_a_stopped_trial_reports_its_validations_again_and_trains_no_further(monkeypatch, reports, config):
    run = f"{config.run.storage}/a"
    storage.write_bytes(f"{run}/{METRICS_FILE}", b'{"epoch": 1}\n{"epoch": 2, "AP": 0.1}\n')
    storage.write_bytes(f"{run}/{STOPPED_FILE}", b"{}")
    run_trial(monkeypatch, config, lambda *_, **__: pytest.fail("a stopped trial must not train"))
    assert [(row["epoch"], row["AP"]) for row in reports] == [(2, 0.1)]


class Waits(Exception):
    """The trial waits for its end."""


@pytest.mark.parametrize("reason", ["", "SIGTERM"], ids=["while it trains", "before it starts"])
def test_a_trial_of_a_stopped_study_writes_a_checkpoint_reports_nothing_and_waits_for_its_end(monkeypatch, reports, config, reason):
    """Tune would count a return as the end of the trial, and an error as a failure."""

    def wait() -> None:
        raise Waits

    monkeypatch.setattr(trials.threading, "Event", lambda: SimpleNamespace(wait=wait))
    stop_actor, trained = StopActor(reason), []

    def train(*_: object, **__: object) -> None:
        trained.append(1)
        raise Preempted("checkpoint written", "SIGTERM")

    monkeypatch.setattr(trials, "train", train)
    with pytest.raises(Waits):
        trials._trial({}, plan=TrialPlan(lambda values: config, config.cluster, 1), source=None, stop_actor=stop_actor)
    assert (stop_actor.stopped, reports, bool(trained)) == ({"a"}, [], not reason)


def test_a_trial_whose_workers_found_no_capacity_goes_on_waiting_as_other_trials_may_take_hours(monkeypatch, caplog, reports, config):
    config = replace(config, cluster=ClusterConfig(workers="2"))
    ends: list[object] = [CapacityError("found capacity for 1 workers for 1800 s, expected 2")] * 3 + [{"metrics": {"AP": 0.3}}]

    def train(*_: object, **__: object) -> object:
        end = ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return end

    monkeypatch.setattr(trials, "TuneReportCallback", lambda: None)
    run_trial(monkeypatch, config, train)
    assert (ends, reports) == ([], [{"epoch": 4, "AP": 0.3}])
    assert caplog.text.count("event=trial_waits trial=a") == 3

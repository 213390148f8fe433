"""How trials share a cluster, and what happens to one that fails."""

import pytest
from ray import tune

from yolor_ray.config import ClusterConfig, TrainConfig
from yolor_ray.errors import ConfigError, NonFiniteLossError, StorageError, WeightsError
from yolor_ray.study import trials
from yolor_ray.study.trials import TrialPlan, trial_cluster


@pytest.mark.parametrize(
    ("cluster", "nodes", "room"),
    [
        (ClusterConfig(), [{"CPU": 2}], 2),
        (ClusterConfig(compute_threads=2), [{"CPU": 5}], 2),
        (ClusterConfig(compute_threads=3), [{"CPU": 4}, {"CPU": 5}, {"CPU": 2}], 2),
        (ClusterConfig(gpu=True), [{"CPU": 64, "GPU": 8}], 8),
        (ClusterConfig(gpu=True), [{"CPU": 3, "GPU": 8}, {"CPU": 16}], 3),
        (ClusterConfig(workers="1", cpus_per_worker=0.5), [{"CPU": 2}], 2),
        (ClusterConfig(workers="2", cpus_per_worker=0.5), [{"CPU": 2}], 1),
        (ClusterConfig(workers="2", cpus_per_worker=1), [{"CPU": 8}, {"CPU": 8}], 6),
        (ClusterConfig(workers="2-8", gpu=True), [{"CPU": 16, "GPU": 4}, {"CPU": 16, "GPU": 3}], 3),
        (ClusterConfig(workers="4", gpu=True), [{"CPU": 1, "GPU": 8}], 2),
    ],
)
def test_as_many_trials_run_as_the_cluster_has_room_for_with_their_workers_and_readers(cluster, nodes, room):
    assert trials._schedulable_trials(trial_cluster(cluster), nodes) == room


@pytest.mark.parametrize(
    ("cluster", "nodes", "message"),
    [
        (ClusterConfig(gpu=True), [{"CPU": 8}], "one trial needs 1 CPUs and 1 GPUs, found nodes of 8 CPUs and 0 GPUs"),
        (
            ClusterConfig(compute_threads=8),
            [{"CPU": 4}, {"CPU": 4}],
            "one trial needs 8 CPUs, found nodes of 4 CPUs and 0 GPUs; 4 CPUs and 0 GPUs",
        ),
        (
            ClusterConfig(workers="4", cpus_per_worker=1),
            [{"CPU": 4}],
            "needs 4 workers of 1 CPUs, and 0.5 CPUs to read, found nodes of 4 CPUs",
        ),
    ],
)
def test_a_cluster_without_room_for_a_single_trial_is_refused_instead_of_waited_for(cluster, nodes, message):
    with pytest.raises(ConfigError, match=message):
        trials._schedulable_trials(trial_cluster(cluster), nodes)


def test_the_process_of_a_trial_takes_nothing_that_its_workers_need():
    assert trials._resources(ClusterConfig(workers="2"))["CPU"] < 0.01


def test_a_trial_without_workers_computes_on_as_many_threads_as_it_reserves():
    for threads, reserved in ((0, 1), (1, 1), (3, 3)):
        cluster = trial_cluster(ClusterConfig(compute_threads=threads))
        assert trials._resources(cluster) == {"CPU": reserved}
        assert cluster.compute_threads == reserved
    assert trial_cluster(ClusterConfig(workers="2")).threads == 0, "workers share their node's cores as in a single run"


@pytest.fixture
def reported(monkeypatch):
    """What a trial tells Tune."""
    rows: list[dict] = []
    monkeypatch.setattr(tune, "report", rows.append)
    return rows


def run_failing(monkeypatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(trials, "train", fail)
    trials._trial({}, plan=TrialPlan(lambda values: TrainConfig(), ClusterConfig(), 1), source=None)


@pytest.mark.parametrize("error", [NonFiniteLossError("step 9"), WeightsError("other anchors"), ConfigError("optim.lr: found 9")])
def test_what_would_fail_again_is_told_and_not_retried(monkeypatch, reported, error):
    run_failing(monkeypatch, error)
    assert reported == [{"reason": f"{type(error).__name__}: {error}", "epoch": 0, "AP": -1.0}]


@pytest.mark.parametrize("error", [StorageError("s3://b/k: timed out"), RuntimeError("out of memory")])
def test_what_may_go_well_the_next_time_is_left_to_tune_to_retry(monkeypatch, reported, error):
    with pytest.raises(type(error)):
        run_failing(monkeypatch, error)
    assert reported == []

"""Early stopping: the rule, the end of a run, its resume, and the search that trains such runs."""

import dataclasses
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from tiny_run import Killed, kill_after, tiny_run, train_until_killed
from yolor_ray.config import TrainConfig
from yolor_ray.model.weights import load_weights
from yolor_ray.study import trials
from yolor_ray.train import loop
from yolor_ray.train import run as training
from yolor_ray.train.checkpoint.checkpoint import Progress
from yolor_ray.train.optim.early_stop import ends_early
from yolor_ray.train.run import train
from yolor_ray.train.run_log import RunLogger, read_metrics
from yolor_ray.train.validation import validate

pytestmark = pytest.mark.usefixtures("undrawn")

STEPS_PER_EPOCH = 6
APS = {1: 0.0, 2: 0.3, 3: 0.2, 4: 0.3, 5: 0.9, 6: 0.9}
"""Scripted AP by epoch: the best validation is the second, and two epochs later no validation was better."""


def rows_of(aps: dict[int, float], epochs: int) -> list[dict]:
    return [{"epoch": epoch, **({"AP": aps[epoch]} if epoch in aps else {})} for epoch in range(1, epochs + 1)]


@pytest.mark.parametrize(("epochs", "ends"), [(1, False), (2, False), (3, False), (4, True)])
def test_a_run_ends_when_the_best_validation_is_as_old_as_the_patience(epochs, ends):
    assert ends_early(rows_of(APS, epochs), ("detect",), patience=2) == ends


def test_an_equal_validation_is_not_better_and_a_better_one_starts_the_wait_anew():
    assert ends_early(rows_of({1: 0.3, 2: 0.3, 3: 0.3}, 3), ("detect",), patience=2)
    assert not ends_early(rows_of({1: 0.3, 2: 0.3, 3: 0.31}, 3), ("detect",), patience=2)


def test_epochs_without_a_validation_do_not_end_a_run():
    aps = {10: 0.3, 20: 0.2}
    assert not ends_early(rows_of(aps, 19), ("detect",), patience=5), "nobody knows yet if epoch 19 is better"
    assert ends_early(rows_of(aps, 20), ("detect",), patience=5)


@pytest.mark.parametrize("ap", [0.0, -1.0], ids=["nothing found", "nothing to measure"])
def test_the_wait_begins_with_the_first_fitness_above_zero(ap):
    assert not ends_early(rows_of(dict.fromkeys(range(1, 9), ap), 8), ("detect",), patience=1)
    assert not ends_early(rows_of({**dict.fromkeys(range(1, 9), ap), 9: 0.1}, 9), ("detect",), patience=1)


def test_the_fitness_counts_all_tasks():
    rows = [{"epoch": epoch, "AP": 0.3, "segment/AP": segment} for epoch, segment in ((1, 0.1), (2, 0.2))]
    assert ends_early(rows, ("detect",), patience=1)
    assert not ends_early(rows, ("detect", "segment"), patience=1)


def test_patience_zero_never_ends_a_run():
    assert not ends_early(rows_of(dict.fromkeys(range(1, 100), 0.3), 99), ("detect",), patience=0)


@pytest.fixture
def scripted_ap(monkeypatch) -> None:
    def validate_by_script(learner, *args):
        validation = validate(learner, *args)
        validation.result.metrics["AP"] = APS[learner.step // STEPS_PER_EPOCH]
        return validation

    monkeypatch.setattr(loop, "validate", validate_by_script)
    monkeypatch.setattr(RunLogger, "_draw", lambda _: None)


def patient_run(folder: Path, name: str) -> TrainConfig:
    config = tiny_run(folder, name)
    optim, run = dataclasses.replace(config.optim, epochs=6, patience=2), dataclasses.replace(config.run, validate_epochs=1)
    return dataclasses.replace(config, optim=optim, run=run)


def test_a_run_that_ends_early_is_finished_and_publishes_its_best_epoch(folder: Path, scripted_ap, caplog, monkeypatch) -> None:
    config, reported = patient_run(folder, "early"), []
    with caplog.at_level(logging.INFO):
        result = train(config, report=reported.append)
    assert [line for line in caplog.messages if "early_stop" in line] == ["event=early_stop epoch=4 best_epoch=2 fitness=0.3000"]
    assert [row["epoch"] for row in read_metrics(result["run"])] == [1, 2, 3, 4]
    assert [row["epoch"] for row in reported] == [1, 2, 3], "as in every run, the last validation is the result"
    assert result["metrics"]["AP"] == load_weights(result["weights"])[1].metrics["AP"] == 0.3
    assert [path.name[:6] for path in (folder / "early" / "best").iterdir()] == ["000002"]
    assert (folder / "early" / "report" / "metrics.json").exists()
    kill_after(monkeypatch, 0)
    assert train(config) == result
    trial_reports: list[dict] = []
    monkeypatch.setattr(trials.tune, "report", trial_reports.append)
    monkeypatch.setattr(trials.ray, "get", lambda answer: answer)
    stop_actor = SimpleNamespace(reason=SimpleNamespace(remote=lambda: ""), wait=SimpleNamespace(remote=lambda: ""))
    trials._trial({}, plan=trials.TrialPlan(lambda _: config, config.cluster, 1), source=None, stop_actor=stop_actor)
    assert (trial_reports[-1]["epoch"], trial_reports[-1]["AP"]) == (6, 0.3), "for a search, the trial is finished and was not stopped"


def test_a_killed_run_ends_in_the_same_epoch_and_publishes_its_weights_without_more_training(
    folder: Path, scripted_ap, monkeypatch
) -> None:
    def kill(_: str) -> None:
        raise Killed

    config = patient_run(folder, "killed")
    train_until_killed(config, monkeypatch, 3 * STEPS_PER_EPOCH + 2)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training, "_publish_best", kill)
        train(config)
    kill_after(monkeypatch, 0)
    result = train(config)
    assert [row["epoch"] for row in read_metrics(result["run"])] == [1, 2, 3, 4]
    assert result["metrics"]["AP"] == 0.3


@pytest.mark.parametrize(("patience", "decision_of_rank_zero", "ends"), [(2, True, True), (2, False, False), (0, True, False)])
def test_a_worker_without_metrics_decides_as_rank_zero(folder: Path, patience, decision_of_rank_zero, ends):
    config = patient_run(folder, "worker")
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, patience=patience))
    dist_context = SimpleNamespace(start_max=lambda own_decision: lambda: max(own_decision, decision_of_rank_zero))
    worker = loop._Worker(SimpleNamespace(config=config), dist_context, None, None, Progress("", rows=[]), None, None)
    assert worker.agree_to_end_early({"epoch": 4}) is ends

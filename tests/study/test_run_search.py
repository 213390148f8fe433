"""What a search proposes to Ray Tune, and what it knows again when it goes on."""

import dataclasses
import json
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from ray import tune
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher

from yolor_ray.config import OptimConfig, RunConfig, TrainConfig
from yolor_ray.config.search_space import Choice, Range
from yolor_ray.config.study import SearchConfig
from yolor_ray.io import manifest, storage
from yolor_ray.study import trials
from yolor_ray.study.search import run as search
from yolor_ray.study.search.unique_searcher import UniqueSearcher
from yolor_ray.study.trials import TrialPlan
from yolor_ray.train.run_log import METRICS_FILE, read_metrics

LR = Range(1e-3, 1e-1, log=True, integer=False)


@pytest.fixture
def run(tmp_path) -> TrainConfig:
    return TrainConfig(optim=OptimConfig(epochs=27, lr=0.012345), run=RunConfig(storage=str(tmp_path), name="found"))


def test_a_trial_is_named_by_its_settings_whatever_their_order(run):
    config_of = search._config_of(run, "/studies/found", {"optim.lr": LR, "augment.mosaic": Range(0, 1, False, False)})
    one = config_of({"optim.lr": 0.02, "augment.mosaic": 0.5})
    same = config_of({"augment.mosaic": 0.5, "optim.lr": 0.02})
    other = config_of({"augment.mosaic": 0.5, "optim.lr": 0.03})
    assert one == same
    assert one.run.name != other.run.name
    assert one.run.storage == "/studies/found/trials"
    assert one.run.validate_epochs == 3, "nine looks at 27 epochs"


def test_numbers_from_a_range_are_rounded_but_never_out_of_it_and_what_was_chosen_stays_as_it_is(run):
    dimensions = {
        "optim.lr": LR,
        "optim.ema_decay": Range(0.99, 0.9999, False, False),
        "loss.box": Range(0.0123, 0.2, True, False),
        "optim.momentum": Choice((0.9375, 0.95)),
    }
    values = {"optim.lr": 0.012345, "optim.ema_decay": 0.99987, "loss.box": 0.0512345, "optim.momentum": 0.9375}
    optim, loss = (config := search._config_of(run, "/s", dimensions)(values)).optim, config.loss
    assert (optim.lr, loss.box, optim.momentum) == (0.012345, 0.0512, 0.9375), "the preset's own value and a chosen one are kept"
    assert optim.ema_decay == 0.9999, "1 would be out of the range"


def test_dimensions_are_drawn_from_end_to_end():
    whole = search._domain(Range(2, 4, log=False, integer=True))
    assert {whole.sample() for _ in range(200)} == {2, 3, 4}
    assert {search._domain(Choice((1, "a"))).sample() for _ in range(50)} == {1, "a"}
    for log in (False, True):
        drawn = [search._domain(Range(1e-3, 1e-1, log=log, integer=False)).sample() for _ in range(500)]
        assert 1e-3 <= min(drawn) < max(drawn) <= 1e-1
        assert (sum(value < 1e-2 for value in drawn) > 150) == log, "half of a logarithm's draws are in the lower decade, else a tenth"


def study_of(epochs: int, scheduler: str) -> SearchConfig:
    return SearchConfig(train=TrainConfig(optim=OptimConfig(epochs=epochs)), scheduler=scheduler)


@pytest.mark.parametrize(("epochs", "looks"), [(9, [1, 3]), (10, [1, 3]), (36, [4, 12]), (100, [11, 33]), (300, [33, 99])])
def test_asha_looks_at_a_ninth_and_a_third_of_the_epochs_and_not_near_the_end(epochs, looks):
    asha = search._scheduler(study_of(epochs, "asha"))
    assert isinstance(asha, ASHAScheduler)
    assert [milestone for milestone, _ in reversed(asha._brackets[0]._rungs)] == looks
    assert not asha._stop_last_trials


def test_the_median_rule_never_pauses_a_trial_for_it_could_not_go_on_from_there():
    rule = search._scheduler(study_of(100, "median"))
    assert isinstance(rule, MedianStoppingRule)
    rule._last_pause["trial"] = 0
    waiting = SimpleNamespace(get_live_trials=lambda: [SimpleNamespace(status="PENDING")])
    assert rule._on_insufficient_samples(waiting, "trial", 100) == TrialScheduler.CONTINUE


@pytest.mark.parametrize("scheduler", ["asha", "median", "none"])
def test_every_scheduler_takes_what_a_failed_trial_reports(scheduler):
    rule = search._scheduler(study_of(100, scheduler))
    trial, controller = Mock(trial_id="a", status="RUNNING"), Mock()
    rule.on_trial_add(controller, trial)
    assert rule.on_trial_result(controller, trial, {"reason": "no gradient", "epoch": 0, "AP": -1.0}) == TrialScheduler.CONTINUE


class Repeating(Searcher):
    """Proposes the same few settings again and again."""

    def __init__(self) -> None:
        super().__init__(metric="AP", mode="max")
        self.asked: list[str] = []
        self.told: list[tuple] = []

    def suggest(self, trial_id: str) -> dict:
        self.asked.append(trial_id)
        return {"optim.lr": (0.01, 0.01, 0.02)[(len(self.asked) - 1) % 3]}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        self.told.append((trial_id, result, error))


def test_no_two_trials_train_the_same_settings():
    inner = Repeating()
    distinct = UniqueSearcher(inner, lambda values: str(values["optim.lr"]))
    assert [distinct.suggest(name)["optim.lr"] for name in ("a", "b")] == [0.01, 0.02]
    assert [error for _, _, error in inner.told] == [True], "a repeat is told as one that came to nothing"
    distinct.on_trial_complete("b", {"AP": 0.5})
    assert inner.told[-1] == (inner.asked[2], {"AP": 0.5}, False)
    assert distinct.suggest("c") == Searcher.FINISHED, "there is nothing else to propose"


def test_what_was_begun_is_proposed_again(run, tmp_path):
    folder, dimensions = str(tmp_path / "found"), {"optim.lr": Range(1e-3, 1e-1, True, False), "network.widths": Choice(((8, 8), (16, 16)))}
    for lr in (0.02, 0.03):
        config = dataclasses.replace(run, optim=dataclasses.replace(run.optim, lr=lr))
        storage.write_bytes(f"{folder}/trials/{lr}/config.json", json.dumps(dataclasses.asdict(config)).encode())
    found = search._begun(folder, dimensions)
    assert [values["optim.lr"] for values in found] == [0.02, 0.03]
    assert all(values["network.widths"] == run.network.widths for values in found), "a tuple, as proposals hold it"


def test_a_finished_trial_tells_again_what_it_measured_on_its_way(run, monkeypatch, tmp_path):
    """So a scheduler that starts anew compares others at an epoch with what it was at that epoch, not with its end."""
    rows = [{"epoch": 1}, {"epoch": 2, "AP": 0.1}, {"epoch": 4, "AP": 0.3}]
    place = f"{tmp_path}/trials/a"
    storage.write_bytes(f"{place}/{METRICS_FILE}", b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    manifest.publish(f"{place}/weights", {"config.json": b"{}"})
    config = dataclasses.replace(run, optim=OptimConfig(epochs=4), run=RunConfig(storage=f"{tmp_path}/trials", name="a"))
    told: list[dict] = []
    monkeypatch.setattr(tune, "report", told.append)
    monkeypatch.setattr(trials, "train", lambda *_, **__: {"run": place, "metrics": {"AP": 0.3}})
    trials._trial({}, plan=TrialPlan(lambda values: config, config.cluster, 1), source=None)
    assert [(row["epoch"], row["AP"]) for row in told] == [(2, 0.1), (4, 0.3)]
    assert read_metrics(place) == rows


def test_a_stopped_trial_tells_again_what_it_measured_and_trains_no_further(run, monkeypatch, tmp_path):
    place = f"{tmp_path}/trials/a"
    storage.write_bytes(f"{place}/{METRICS_FILE}", b'{"epoch": 1}\n{"epoch": 2, "AP": 0.1}\n')
    storage.write_bytes(f"{place}/{trials.STOPPED_FILE}", b"{}")
    config = dataclasses.replace(run, optim=OptimConfig(epochs=4), run=RunConfig(storage=f"{tmp_path}/trials", name="a"))
    told: list[dict] = []
    monkeypatch.setattr(tune, "report", told.append)
    monkeypatch.setattr(trials, "train", lambda *_, **__: pytest.fail("it was stopped"))
    trials._trial({}, plan=TrialPlan(lambda values: config, config.cluster, 1), source=None)
    assert [(row["epoch"], row["AP"]) for row in told] == [(2, 0.1)]

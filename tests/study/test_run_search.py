"""Proposals of a search to Ray Tune: names, ranges, schedulers, repeats, and the trials of an earlier job."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher

from former_settings import former_settings
from yolor_ray.config import OptimConfig, RunConfig, TrainConfig
from yolor_ray.config.search_space import Choice, Range, search_space
from yolor_ray.config.study import SearchConfig
from yolor_ray.io import manifest, storage
from yolor_ray.study.search import run as search
from yolor_ray.study.search.unique_searcher import UniqueSearcher

LR = Range(1e-3, 1e-1, log=True, integer=False)


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    return TrainConfig(optim=OptimConfig(epochs=27, lr=0.012345), run=RunConfig(storage=str(tmp_path), name="study"))


def test_a_trial_is_named_by_its_settings_in_any_order(config):
    config_of = search._make_config_of(config, "/studies/study", {"optim.lr": LR, "augment.mosaic": Range(0, 1, False, False)}, {})
    trial = config_of({"optim.lr": 0.02, "augment.mosaic": 0.5})
    assert trial == config_of({"augment.mosaic": 0.5, "optim.lr": 0.02})
    assert trial.run.name != config_of({"augment.mosaic": 0.5, "optim.lr": 0.03}).run.name
    assert trial.run.storage == "/studies/study/trials"
    assert trial.run.validate_epochs == 3, "nine validations in 27 epochs"


def test_a_search_counts_the_networks_that_its_dimensions_make(config):
    dimensions = {"optim.lr": LR, "network.anchors_per_level": Choice((2, 4)), "network.neck_depth": Choice((1,))}
    networks = search._networks(config, dimensions)
    assert {network.anchors_per_level for network in networks} == {2, 4}
    assert {network.neck_depth for network in networks} == {1}


def test_drawn_numbers_are_rounded_within_their_range_and_chosen_values_stay_unchanged(config):
    dimensions = {
        "optim.lr": LR,
        "optim.ema_decay": Range(0.99, 0.9999, False, False),
        "loss.box": Range(0.0123, 0.2, True, False),
        "optim.momentum": Choice((0.9375, 0.95)),
    }
    values = {"optim.lr": 0.012345, "optim.ema_decay": 0.99987, "loss.box": 0.0512345, "optim.momentum": 0.9375}
    trial = search._make_config_of(config, "/s", dimensions, {})(values)
    chosen = (trial.optim.lr, trial.loss.box, trial.optim.momentum)
    assert chosen == (0.012345, 0.0512, 0.9375), "the preset's own value and a choice are not rounded"
    assert trial.optim.ema_decay == 0.9999, "1 would be outside the range"


def test_dimensions_are_drawn_from_end_to_end():
    integers = search._tune_domain(Range(2, 4, log=False, integer=True))
    assert {integers.sample() for _ in range(200)} == {2, 3, 4}
    assert {search._tune_domain(Choice((1, "a"))).sample() for _ in range(50)} == {1, "a"}
    for log in (False, True):
        drawn = [search._tune_domain(Range(1e-3, 1e-1, log=log, integer=False)).sample() for _ in range(500)]
        assert 1e-3 <= min(drawn) < max(drawn) <= 1e-1
        assert (sum(value < 1e-2 for value in drawn) > 150) == log, "the lower decade has half of logarithmic draws, else a tenth"


def make_study(epochs: int, scheduler: str) -> SearchConfig:
    return SearchConfig(train=TrainConfig(optim=OptimConfig(epochs=epochs)), scheduler=scheduler)


@pytest.mark.parametrize(("epochs", "rungs"), [(9, [1, 3]), (10, [1, 3]), (36, [4, 12]), (100, [11, 33]), (300, [33, 99])])
def test_asha_stops_trials_at_a_ninth_and_a_third_of_the_epochs_only(epochs, rungs):
    asha = search._scheduler(make_study(epochs, "asha"))
    assert isinstance(asha, ASHAScheduler)
    assert [milestone for milestone, _ in reversed(asha._brackets[0]._rungs)] == rungs
    assert not asha._stop_last_trials


def test_the_median_rule_never_pauses_a_trial_because_a_trial_cannot_resume_from_a_pause():
    rule = search._scheduler(make_study(100, "median"))
    assert isinstance(rule, MedianStoppingRule)
    rule._last_pause["trial"] = 0
    controller = SimpleNamespace(get_live_trials=lambda: [SimpleNamespace(status="PENDING")])
    assert rule._on_insufficient_samples(controller, "trial", 100) == TrialScheduler.CONTINUE


@pytest.mark.parametrize("scheduler", ["asha", "median", "none"])
def test_every_scheduler_accepts_the_report_of_a_failed_trial(scheduler):
    rule = search._scheduler(make_study(100, scheduler))
    trial, controller = Mock(trial_id="a", status="RUNNING"), Mock()
    rule.on_trial_add(controller, trial)
    assert rule.on_trial_result(controller, trial, {"reason": "no gradient", "epoch": 0, "AP": -1.0}) == TrialScheduler.CONTINUE


class RepeatingSearcher(Searcher):
    """Proposes the same few settings again and again."""

    def __init__(self) -> None:
        super().__init__(metric="AP", mode="max")
        self.suggested: list[str] = []
        self.completed: list[tuple] = []

    def suggest(self, trial_id: str) -> dict:
        self.suggested.append(trial_id)
        return {"optim.lr": (0.01, 0.01, 0.02)[(len(self.suggested) - 1) % 3]}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        self.completed.append((trial_id, result, error))


def test_no_two_trials_have_the_same_settings():
    inner = RepeatingSearcher()
    searcher = UniqueSearcher(inner, lambda values: str(values["optim.lr"]))
    assert [searcher.suggest(name)["optim.lr"] for name in ("a", "b")] == [0.01, 0.02]
    assert [error for _, _, error in inner.completed] == [True], "a repeated proposal completes with an error"
    searcher.on_trial_complete("b", {"AP": 0.5})
    assert inner.completed[-1] == (inner.suggested[2], {"AP": 0.5}, False)
    assert searcher.suggest("c") == Searcher.FINISHED, "the search space is exhausted"


def write_trial(folder: str, name: str, settings: dict, finished: bool) -> None:
    storage.write_bytes(f"{folder}/trials/{name}/config.json", json.dumps(settings).encode())
    if finished:
        manifest.publish(f"{folder}/trials/{name}/weights", {"config.json": b"{}"})


def test_earlier_trials_are_proposed_again_finished_ones_first(config, tmp_path):
    folder, dimensions = str(tmp_path / "study"), {"optim.lr": LR, "network.widths": Choice(((8, 8), (16, 16)))}
    for lr in (0.02, 0.03, 0.04):
        write_trial(folder, str(lr), asdict(replace(config, optim=replace(config.optim, lr=lr))), finished=lr == 0.04)
    earlier = search._earlier_trials(folder, dimensions)
    assert [values["optim.lr"] for values in earlier.values()] == [0.04, 0.02, 0.03]
    assert all(values["network.widths"] == config.network.widths for values in earlier.values()), "a tuple, as in proposals"


def test_a_search_of_version_01_resumes_in_the_folders_of_its_trials(config, tmp_path):
    """The digest in a folder's name was of the former setting names, such as `optim.final_lr`."""
    folder, dimensions = str(tmp_path / "study"), search_space(config, ())
    trial = replace(config, optim=replace(config.optim, lr=0.02))
    write_trial(folder, "digest-of-0.1", former_settings(trial), finished=True)
    earlier = search._earlier_trials(folder, dimensions)
    config_of = search._make_config_of(config, folder, dimensions, earlier)
    [values] = earlier.values()
    assert (config_of(values).run.name, config_of(values).optim.lr) == ("digest-of-0.1", 0.02)
    assert config_of(values | {"optim.lr": 0.03}).run.name != "digest-of-0.1"

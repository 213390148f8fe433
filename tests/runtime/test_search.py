"""What a search proposes to Ray Tune, and what it knows again when it goes on."""

import dataclasses
import json

import pytest
from ray import tune
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule

from yolor_ray import storage
from yolor_ray.config import Optim, Run, Train
from yolor_ray.config.space import Choice, Range
from yolor_ray.config_tune import Search
from yolor_ray.runtime import search, trials
from yolor_ray.runtime.board import ROWS_FILE, read_rows
from yolor_ray.runtime.trials import Plan, trial_cluster


@pytest.fixture
def run(tmp_path) -> Train:
    return Train(optim=Optim(epochs=27, lr=0.012345), run=Run(storage=str(tmp_path), name="found"))


def test_a_trial_is_named_by_its_settings_whatever_their_order(run):
    config_of = search._config_of(run, "/studies/found")
    one = config_of({"optim.lr": 0.02, "augment.mosaic": 0.5})
    same = config_of({"augment.mosaic": 0.5, "optim.lr": 0.02})
    other = config_of({"augment.mosaic": 0.5, "optim.lr": 0.03})
    assert one == same
    assert one.run.name != other.run.name
    assert one.run.storage == "/studies/found/trials"
    assert one.run.validate_every == 3, "nine looks at 27 epochs"


def test_proposals_are_rounded_but_the_presets_own_values_are_not(run):
    config = search._config_of(run, "/s")({"optim.lr": 0.012345, "loss.box": 0.0512345, "network.anchors_per_level": 3})
    assert (config.optim.lr, config.loss.box) == (0.012345, 0.0512)


def test_dimensions_are_drawn_from_end_to_end():
    whole = search._domain(Range(2, 4, log=False, integer=True))
    assert {whole.sample() for _ in range(200)} == {2, 3, 4}
    assert {search._domain(Choice((1, "a"))).sample() for _ in range(50)} == {1, "a"}
    for log in (False, True):
        drawn = [search._domain(Range(1e-3, 1e-1, log=log, integer=False)).sample() for _ in range(500)]
        assert 1e-3 <= min(drawn) < max(drawn) <= 1e-1
        assert (sum(value < 1e-2 for value in drawn) > 150) == log, "half of a logarithm's draws are in the lower decade, else a tenth"


def test_asha_looks_twice_before_the_end(run):
    asha = search._scheduler(Search(train=run, scheduler="asha"))
    assert isinstance(asha, ASHAScheduler)
    assert [milestone for milestone, _ in asha._brackets[0]._rungs if milestone < run.optim.epochs] == [9, 3]
    assert isinstance(search._scheduler(Search(train=run, scheduler="median")), MedianStoppingRule)


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
    storage.write_bytes(f"{place}/{ROWS_FILE}", b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    storage.publish(f"{place}/weights", {"config.json": b"{}"})
    config = dataclasses.replace(run, optim=Optim(epochs=4), run=Run(storage=f"{tmp_path}/trials", name="a"))
    told: list[dict] = []
    monkeypatch.setattr(tune, "report", told.append)
    monkeypatch.setattr(trials, "train", lambda *_, **__: {"run": place, "metrics": {"AP": 0.3}})
    trials._trial({}, plan=Plan(lambda values: config, trial_cluster(config.cluster), 1), source=None)
    assert [(row["epoch"], row["AP"]) for row in told] == [(2, 0.1), (4, 0.3)]
    assert read_rows(place) == rows

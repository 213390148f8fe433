"""Log of the trials: one line per event, outcomes in the order of the starts, and a marker for a stopped trial."""

import json
import logging
from dataclasses import replace

import pytest

from yolor_ray.config import OptimConfig, RunConfig, TrainConfig
from yolor_ray.io import manifest, storage
from yolor_ray.study import trial_log
from yolor_ray.study.trial_log import STOPPED_FILE, TrialLog, TrialOutcome, run_url

FINISHED = TrialOutcome({"lr": 1}, {"epoch": 9, "AP": 0.25}, "")
STOPPED = TrialOutcome({"lr": 2}, {"epoch": 3, "AP": 0.1}, "")
FAILED = TrialOutcome({"lr": 3}, {}, "NonFiniteLossError: step 7")


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """Replace the clock of the log; the item is the time in seconds."""
    now = [100.0]
    monkeypatch.setattr(trial_log.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    return TrainConfig(optim=OptimConfig(epochs=9), run=RunConfig(storage=str(tmp_path), name="trial-a"))


def named(config: TrainConfig, name: str) -> TrainConfig:
    return replace(config, run=replace(config.run, name=name))


def test_every_event_is_one_line_with_its_values(config, clock, caplog):
    caplog.set_level(logging.INFO, "yolor_ray.study.trial_log")
    log = TrialLog(count=4, concurrent=2)
    for trial_id, name in (("1", "a"), ("2", "b"), ("3", "c")):
        log.record_start(trial_id, name)
    log.record_retry("b", "RuntimeError: node lost")
    clock[0] += 60
    for trial_id, name, outcome in (("1", "a", FINISHED), ("2", "b", STOPPED), ("3", "c", FAILED)):
        log.record_end(trial_id, named(config, name), outcome)
    assert [record.getMessage() for record in caplog.records] == [
        "event=trial_started trial=a",
        "event=trial_started trial=b",
        "event=trial_started trial=c",
        "event=trial_retried trial=b reason='RuntimeError: node lost'",
        "event=trial_done trial=a AP=0.2500 epoch=9 done=1/4 eta='0:01:30'",
        "event=trial_stopped trial=b AP=0.1000 epoch=3 done=2/4 eta='0:01:00'",
        "event=trial_failed trial=c epoch=0 done=3/4 eta='0:00:30' reason='NonFiniteLossError: step 7'",
    ]


def test_outcomes_have_the_order_of_the_first_starts(config):
    log = TrialLog(count=3, concurrent=3)
    for trial_id in ("1", "2", "3", "1"):
        log.record_start(trial_id, trial_id)
    log.record_end("3", config, FAILED)
    log.record_end("1", config, FINISHED)
    assert log.outcomes == [FINISHED, FAILED]


def test_only_a_stopped_trial_without_weights_is_marked(config):
    log = TrialLog(count=4, concurrent=1)
    for name, outcome in (("done", FINISHED), ("failed", FAILED), ("stopped", STOPPED), ("published", STOPPED)):
        trial = named(config, name)
        if name == "published":
            manifest.publish(f"{run_url(trial)}/weights", {"config.json": b"{}"})
        log.record_end(name, trial, outcome)
        marked = storage.exists(f"{run_url(trial)}/{STOPPED_FILE}")
        assert marked == (name == "stopped"), name
    assert json.loads(storage.read_bytes(f"{config.run.storage}/stopped/{STOPPED_FILE}")) == {"epoch": 3, "AP": 0.1}

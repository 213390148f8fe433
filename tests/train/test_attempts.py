"""The lives of a run: what a stop cost, and that only the last life writes."""

import json
from pathlib import Path

import pytest

from yolor_ray.errors import StorageError, SupersededError
from yolor_ray.train.checkpoint import attempts
from yolor_ray.train.checkpoint.attempts import ATTEMPTS_FILE, HEARTBEAT_FILE, RunAttempt, read_attempts


def live(run: str, steps: range, workers: int = 2, after: str = "") -> RunAttempt:
    with RunAttempt(run, workers, after) as life:
        for step in steps:
            life.record_step(step)
    return life


def test_a_first_life_has_lost_nothing(tmp_path: Path) -> None:
    live(str(tmp_path), range(1, 4))
    [row] = read_attempts(str(tmp_path))
    assert (row.attempt, row.workers, row.restart_reason, row.from_step, row.lost_steps, row.downtime_s) == (1, 2, "", 0, 0, 0.0)
    assert json.loads((tmp_path / HEARTBEAT_FILE).read_text())["step"] == 3


def test_a_next_life_says_what_the_stop_before_it_cost(tmp_path: Path, monkeypatch) -> None:
    live(str(tmp_path), range(1, 8))
    now = attempts.time.time()
    monkeypatch.setattr(attempts.time, "time", lambda: now + 12.34)
    live(str(tmp_path), range(5, 6), workers=1, after="a node died")
    row = read_attempts(str(tmp_path))[-1]
    assert (row.attempt, row.workers, row.restart_reason, row.from_step, row.lost_steps) == (2, 1, "a node died", 4, 3)
    assert row.downtime_s == pytest.approx(12.3, abs=1.0)


def test_a_life_after_a_job_that_vanished_says_so(tmp_path: Path) -> None:
    live(str(tmp_path), range(1, 3))
    live(str(tmp_path), range(3, 4))
    assert read_attempts(str(tmp_path))[-1].restart_reason == "the job was gone"


def test_a_life_that_ends_before_its_first_step_costs_no_more_than_the_time(tmp_path: Path) -> None:
    live(str(tmp_path), range(1, 6))
    live(str(tmp_path), range(0))
    live(str(tmp_path), range(4, 5))
    assert [(row.from_step, row.lost_steps) for row in read_attempts(str(tmp_path))] == [(0, 0), (0, 0), (3, 2)]


def test_an_outage_of_a_life_that_never_beat_counts_from_its_beginning(tmp_path: Path, monkeypatch) -> None:
    RunAttempt(str(tmp_path), 1, "")
    now = attempts.time.time()
    monkeypatch.setattr(attempts.time, "time", lambda: now + 20)
    live(str(tmp_path), range(1, 2), after="a node died")
    row = read_attempts(str(tmp_path))[-1]
    assert (row.from_step, row.lost_steps) == (0, 0) and row.downtime_s == pytest.approx(20, abs=1.5)


def test_a_life_that_another_has_followed_may_write_no_more(tmp_path: Path) -> None:
    first = RunAttempt(str(tmp_path), 1, "")
    first.check()
    second = RunAttempt(str(tmp_path), 1, "cut off")
    with pytest.raises(SupersededError, match=r"life 1 of \S+ found life 2 of \S+, expected to be the last itself"):
        first.check()
    second.check()


def test_a_life_that_another_followed_before_its_first_step_leaves_that_one_s_row_alone(tmp_path: Path) -> None:
    first = RunAttempt(str(tmp_path), 1, "")
    second = RunAttempt(str(tmp_path), 1, "given twice")
    second.record_step(1)
    with pytest.raises(SupersededError):
        first.record_step(1)
    assert [row.attempt for row in read_attempts(str(tmp_path))] == [1, 2]
    second.check()


def test_of_two_lives_that_begin_at_once_and_count_alike_one_goes_on(tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        # Each has read the rows before the other wrote its own.
        patch.setattr(RunAttempt, "check", lambda self: None)
        first = RunAttempt(str(tmp_path), 1, "")
        (tmp_path / ATTEMPTS_FILE).unlink()
        second = RunAttempt(str(tmp_path), 1, "")
    assert first.record.attempt == second.record.attempt == 1
    with pytest.raises(SupersededError):
        first.record_step(1)
    second.record_step(1)


def test_a_beat_of_one_that_was_cut_off_is_not_taken_for_that_of_the_life_after_it(tmp_path: Path) -> None:
    live(str(tmp_path), range(1, 4))
    live(str(tmp_path), range(3, 6), after="cut off")
    (tmp_path / HEARTBEAT_FILE).write_text(json.dumps({"life": 1, "step": 90, "at": 0}))
    live(str(tmp_path), range(5, 6))
    assert read_attempts(str(tmp_path))[-1].lost_steps == 0


def test_storage_that_is_away_at_the_first_step_does_not_end_training(tmp_path: Path, monkeypatch, caplog) -> None:
    life = RunAttempt(str(tmp_path), 1, "")

    def fail(*_: object) -> None:
        raise StorageError("it is away")

    monkeypatch.setattr(attempts.storage, "write_bytes", fail)
    monkeypatch.setattr(attempts.storage, "read_bytes", fail)
    life.record_step(1)
    assert "event=attempt_log_unreadable" in caplog.text and "event=attempt_log_unwritable" in caplog.text


def test_a_beat_that_cannot_be_written_is_told_and_does_not_end_training(tmp_path: Path, monkeypatch, caplog) -> None:
    life = RunAttempt(str(tmp_path), 1, "")

    def fail(url: str, data: bytes) -> None:
        if url.endswith(HEARTBEAT_FILE):
            raise StorageError(f"{url}: cannot write it")

    monkeypatch.setattr(attempts.storage, "write_bytes", fail)
    with life:
        life.record_step(1)
    assert "event=heartbeat_failed" in caplog.text

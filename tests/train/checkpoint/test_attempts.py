"""Attempts of a run: the cost of each stop, and that only the last attempt writes."""

import json
from pathlib import Path

import pytest

from yolor_ray.errors import StorageError, SupersededError
from yolor_ray.train.checkpoint import attempts
from yolor_ray.train.checkpoint.attempts import ATTEMPTS_FILE, HEARTBEAT_FILE, RunAttempt, read_attempts


def run_attempt(run: str, steps: range, workers: int = 2, restart_reason: str = "") -> RunAttempt:
    with RunAttempt(run, workers, restart_reason) as attempt:
        for step in steps:
            attempt.record_step(step)
    return attempt


def test_a_first_attempt_has_lost_nothing(tmp_path: Path) -> None:
    run_attempt(str(tmp_path), range(1, 4))
    [row] = read_attempts(str(tmp_path))
    assert (row.attempt, row.workers, row.restart_reason, row.from_step, row.lost_steps, row.downtime_s) == (1, 2, "", 0, 0, 0.0)
    assert json.loads((tmp_path / HEARTBEAT_FILE).read_text())["step"] == 3


def test_the_next_attempt_records_the_cost_of_the_stop_before_it(tmp_path: Path, monkeypatch) -> None:
    run_attempt(str(tmp_path), range(1, 8))
    heartbeat = json.loads((tmp_path / HEARTBEAT_FILE).read_text())
    monkeypatch.setattr(attempts.time, "time", lambda: heartbeat["at"] + 12.34)
    run_attempt(str(tmp_path), range(5, 6), workers=1, restart_reason="a node died")
    row = read_attempts(str(tmp_path))[-1]
    assert (row.attempt, row.workers, row.restart_reason, row.from_step, row.lost_steps) == (2, 1, "a node died", 4, 3)
    assert row.downtime_s == 12.3


def test_an_attempt_is_logged_at_its_first_step(tmp_path: Path, caplog) -> None:
    with caplog.at_level("INFO"):
        run_attempt(str(tmp_path), range(1, 3))
    assert "event=attempt attempt=1 workers=2 from_step=0 lost_steps=0 downtime_s=0.0 restart_reason=''" in caplog.text


def test_an_attempt_after_a_lost_driver_says_so(tmp_path: Path) -> None:
    run_attempt(str(tmp_path), range(1, 3))
    run_attempt(str(tmp_path), range(3, 4))
    assert read_attempts(str(tmp_path))[-1].restart_reason == "another driver goes on with the run"


def test_an_attempt_that_ends_before_its_first_step_loses_no_steps(tmp_path: Path) -> None:
    run_attempt(str(tmp_path), range(1, 6))
    run_attempt(str(tmp_path), range(0))
    run_attempt(str(tmp_path), range(4, 5))
    assert [(row.from_step, row.lost_steps) for row in read_attempts(str(tmp_path))] == [(0, 0), (0, 0), (3, 2)]


def test_the_downtime_after_an_attempt_without_a_heartbeat_counts_from_its_start(tmp_path: Path, monkeypatch) -> None:
    first = RunAttempt(str(tmp_path), 1, "")
    started_at = attempts.datetime.fromisoformat(first.record.started_at).timestamp()
    monkeypatch.setattr(attempts.time, "time", lambda: started_at + 20)
    run_attempt(str(tmp_path), range(1, 2), restart_reason="a node died")
    row = read_attempts(str(tmp_path))[-1]
    assert (row.from_step, row.lost_steps, row.downtime_s) == (0, 0, 20.0)


def test_a_superseded_attempt_may_not_write(tmp_path: Path) -> None:
    first = RunAttempt(str(tmp_path), 1, "")
    first.check()
    second = RunAttempt(str(tmp_path), 1, "partitioned")
    with pytest.raises(
        SupersededError, match=r"attempt 1 of \S+ found attempt 2 of \S+ in the last row of attempts.jsonl, expected itself"
    ):
        first.check()
    second.check()


def test_an_attempt_that_is_superseded_before_its_first_step_keeps_the_row_of_its_successor(tmp_path: Path) -> None:
    first = RunAttempt(str(tmp_path), 1, "")
    second = RunAttempt(str(tmp_path), 1, "the command was given twice")
    second.record_step(1)
    with pytest.raises(SupersededError):
        first.record_step(1)
    assert [row.attempt for row in read_attempts(str(tmp_path))] == [1, 2]
    second.check()


def test_one_of_two_attempts_with_the_same_number_continues(tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        # Each attempt has read the rows before the other wrote its own.
        patch.setattr(RunAttempt, "check", lambda self: None)
        first = RunAttempt(str(tmp_path), 1, "")
        (tmp_path / ATTEMPTS_FILE).unlink()
        second = RunAttempt(str(tmp_path), 1, "")
    assert first.record.attempt == second.record.attempt == 1
    with pytest.raises(SupersededError):
        first.record_step(1)
    second.record_step(1)


def test_a_heartbeat_of_a_partitioned_attempt_is_not_taken_for_one_of_its_successor(tmp_path: Path) -> None:
    run_attempt(str(tmp_path), range(1, 4))
    run_attempt(str(tmp_path), range(3, 6), restart_reason="partitioned")
    (tmp_path / HEARTBEAT_FILE).write_text(json.dumps({"attempt": 1, "step": 90, "at": 0}))
    run_attempt(str(tmp_path), range(5, 6))
    assert read_attempts(str(tmp_path))[-1].lost_steps == 0


def test_unreachable_storage_at_the_first_step_does_not_end_training(tmp_path: Path, monkeypatch, caplog) -> None:
    attempt = RunAttempt(str(tmp_path), 1, "")

    def fail(*_: object) -> None:
        raise StorageError("out of reach")

    monkeypatch.setattr(attempts.storage, "write_bytes", fail)
    monkeypatch.setattr(attempts.storage, "read_bytes", fail)
    attempt.record_step(1)
    assert "event=attempt_log_unreadable" in caplog.text and "event=attempt_log_unwritable" in caplog.text


def test_a_failed_heartbeat_is_logged_and_does_not_end_training(tmp_path: Path, monkeypatch, caplog) -> None:
    attempt = RunAttempt(str(tmp_path), 1, "")

    def fail(url: str, data: bytes) -> None:
        if url.endswith(HEARTBEAT_FILE):
            raise StorageError(f"{url}: cannot write it")

    monkeypatch.setattr(attempts.storage, "write_bytes", fail)
    with attempt:
        attempt.record_step(1)
    assert "event=heartbeat_failed" in caplog.text


def test_a_run_of_version_0_1_continues_in_the_current_files(tmp_path: Path, caplog) -> None:
    old_row = {"life": 1, "began": "2026-11-01T00:00:00+00:00", "workers": 2, "after": "", "outage_s": 0.0, "token": "abc"}
    (tmp_path / "lives.jsonl").write_text(json.dumps(old_row | {"from_step": 0, "lost_steps": 0}) + "\n")
    (tmp_path / "beat.json").write_text(json.dumps({"life": 1, "step": 9, "at": 0.0}))
    run_attempt(str(tmp_path), range(5, 6), restart_reason="a node died")
    first, second = read_attempts(str(tmp_path))
    assert (first.attempt, first.started_at, first.fencing_token) == (1, "2026-11-01T00:00:00+00:00", "abc")
    assert (second.attempt, second.restart_reason, second.from_step, second.lost_steps) == (2, "a node died", 4, 5)
    assert "event=file_renamed old=lives.jsonl new=attempts.jsonl" in caplog.text
    assert not (tmp_path / "lives.jsonl").exists(), "an attempt of version 0.1 that still runs finds no rows, and stops"
    assert "event=file_renamed old=beat.json new=heartbeat.json" in caplog.text
    assert json.loads((tmp_path / HEARTBEAT_FILE).read_text())["attempt"] == 2

"""The lives of a run: what a stop cost, and that only the last life writes."""

import json
from pathlib import Path

import pytest

from yolor_ray.errors import StorageError, SupersededError
from yolor_ray.runtime import lives
from yolor_ray.runtime.lives import BEAT_FILE, Life, read_lives


def live(run: str, steps: range, workers: int = 2, after: str = "") -> Life:
    with Life(run, workers, after) as life:
        for step in steps:
            life.took(step)
    return life


def test_a_first_life_has_lost_nothing(tmp_path: Path) -> None:
    live(str(tmp_path), range(1, 4))
    [row] = read_lives(str(tmp_path))
    assert (row.life, row.workers, row.after, row.from_step, row.lost_steps, row.outage_s) == (1, 2, "", 0, 0, 0.0)
    assert json.loads((tmp_path / BEAT_FILE).read_text())["step"] == 3


def test_a_next_life_says_what_the_stop_before_it_cost(tmp_path: Path, monkeypatch) -> None:
    live(str(tmp_path), range(1, 8))
    now = lives.time.time()
    monkeypatch.setattr(lives.time, "time", lambda: now + 12.34)
    live(str(tmp_path), range(5, 6), workers=1, after="a node died")
    row = read_lives(str(tmp_path))[-1]
    assert (row.life, row.workers, row.after, row.from_step, row.lost_steps) == (2, 1, "a node died", 4, 3)
    assert row.outage_s == pytest.approx(12.3, abs=1.0)


def test_a_life_after_a_job_that_vanished_says_so(tmp_path: Path) -> None:
    live(str(tmp_path), range(1, 3))
    live(str(tmp_path), range(3, 4))
    assert read_lives(str(tmp_path))[-1].after == "the job was gone"


def test_a_life_that_ends_before_its_first_step_costs_no_more_than_the_time(tmp_path: Path) -> None:
    live(str(tmp_path), range(1, 6))
    live(str(tmp_path), range(0))
    live(str(tmp_path), range(4, 5))
    assert [(row.from_step, row.lost_steps) for row in read_lives(str(tmp_path))] == [(0, 0), (0, 0), (3, 2)]


def test_an_outage_of_a_life_that_never_beat_counts_from_its_beginning(tmp_path: Path, monkeypatch) -> None:
    Life(str(tmp_path), 1, "")
    now = lives.time.time()
    monkeypatch.setattr(lives.time, "time", lambda: now + 20)
    live(str(tmp_path), range(1, 2), after="a node died")
    row = read_lives(str(tmp_path))[-1]
    assert (row.from_step, row.lost_steps) == (0, 0) and row.outage_s == pytest.approx(20, abs=1.5)


def test_a_life_that_another_has_followed_may_write_no_more(tmp_path: Path) -> None:
    first = Life(str(tmp_path), 1, "")
    first.check()
    second = Life(str(tmp_path), 1, "cut off")
    with pytest.raises(SupersededError, match="life 1 found life 2, expected to be the last"):
        first.check()
    second.check()


def test_a_beat_that_cannot_be_written_is_told_and_does_not_end_training(tmp_path: Path, monkeypatch, caplog) -> None:
    life = Life(str(tmp_path), 1, "")

    def fail(url: str, data: bytes) -> None:
        if url.endswith(BEAT_FILE):
            raise StorageError(f"{url}: cannot write it")

    monkeypatch.setattr(lives.storage, "write_bytes", fail)
    with life:
        life.took(1)
    assert "event=beat_failed" in caplog.text

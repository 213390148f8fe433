"""Hostile inputs are refused by name, within the time of 100 million turns of a loop and 500 MB; what failed once does not fail again.

A process of its own reads them, because one of them once ended the process.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fuzz
from hostile_readers import READERS
from poisons import poisons

TESTS = Path(__file__).resolve().parent
FUZZ = TESTS / "support" / "fuzz.py"
CORPUS = sorted(str(path) for path in (TESTS / "corpus").glob("*/*"))
TIMEOUT_S = 300


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, Any]]:
    """Read all inputs in one process; returns the outcomes by input."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)}
    command = [sys.executable, str(FUZZ), "check", *CORPUS]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr[-3000:]
    return {line["input"]: line for line in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("title", poisons())
def test_a_poisoned_input_is_refused_by_name(outcomes, title: str) -> None:
    line = outcomes[title]
    assert line["as_expected"], line
    # Bytes of an image have no name of their own.
    assert line["outcome"] == "read" or line["reader"] == "image" or "FOLDER" in line["message"], line


def test_every_input_that_failed_once_is_read_or_refused(outcomes) -> None:
    assert len(CORPUS) > 40
    assert [outcomes[file] for file in CORPUS if not outcomes[file]["as_expected"]] == []


def test_every_reader_reads_what_it_is_made_for(outcomes) -> None:
    valid = {title: line for title, line in outcomes.items() if title.startswith("valid ")}
    assert {line["reader"] for line in valid.values()} == READERS.keys()
    assert [line for line in valid.values() if not line["as_expected"]] == []


def test_an_unkept_promise_is_seen(tmp_path: Path, monkeypatch) -> None:
    def outcome(read: Any) -> str:
        return fuzz.call(fuzz.Reader(lambda: [], read, (KeyError,), lambda data, rng: data), "", b"")["outcome"]

    assert outcome(lambda folder, data: None) == "read"
    assert outcome(lambda folder, data: {}["absent"]) == "refused"
    assert outcome(lambda folder, data: [][1]) == "failed"
    assert outcome(lambda folder, data: b"x" * (600 << 20)) == "large"
    monkeypatch.setattr(fuzz, "limit_s", lambda: 0.01)
    assert outcome(lambda folder, data: sum(range(2_000_000))) == "slow"

"""A minute of changed inputs for each reader: a right result or the documented error, within 2 s of processor time and 500 MB.

The environment variables FUZZ_SECONDS and FUZZ_SEED change the time and the inputs.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fuzz import HANG_S
from hostile_readers import READERS

pytestmark = pytest.mark.chaos

FUZZ = Path(__file__).resolve().parents[1] / "support" / "fuzz.py"
SECONDS = float(os.environ.get("FUZZ_SECONDS", "60"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
START_S = 120
"""Longest time of a process before its first input."""


def run(name: str, folder: Path, seed: int, seconds: float) -> tuple[list[dict[str, Any]], str]:
    """Fuzz a reader in a process; returns its lines, and the end of its errors if it did not come to the end."""
    root = FUZZ.parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, str(FUZZ), "fuzz", name, str(seed), str(seconds), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=seconds + HANG_S + START_S)
    return [json.loads(line) for line in done.stdout.splitlines()], "" if done.returncode == 0 else done.stderr[-3000:] or "killed"


@pytest.mark.parametrize("name", READERS)
def test_a_reader_keeps_its_promises_for_any_input(name: str, tmp_path: Path) -> None:
    lines, end, seed = [], time.monotonic() + SECONDS, SEED
    while (left_s := end - time.monotonic()) > 0:
        found, error = run(name, tmp_path, seed, left_s)
        lines += found
        if error:
            current = tmp_path / f"{name}-current"
            kept = current.rename(tmp_path / f"{name}-{seed}-ended") if current.exists() else current
            lines.append({"reader": name, "outcome": "ended", "input": str(kept), "message": error})
            break
        seed += 1
    summaries = [line for line in lines if line["outcome"] == "summary"]
    assert [line for line in lines if line["outcome"] != "summary"] == []
    assert sum(line["inputs"] for line in summaries) > 0

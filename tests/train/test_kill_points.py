"""Kill a run at each change that writing a checkpoint makes to the file system: the run goes on from a whole one, to the same end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHANGES = 19
"""Of an undisturbed run: what the checkpoints that are written beside training rename into their places, and let go of."""


def killed_at(points: list[int], folder: Path) -> dict:
    command = [sys.executable, str(ROOT / "tests" / "support" / "kill_points.py"), str(folder), *map(str, points)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(found: dict, points: list[int]) -> None:
    assert len(found["changes"]) == CHANGES
    for point in points:
        end = found["points"][str(point)]
        assert end.pop("from_step") == end.pop("whole_step")
        assert end == {"killed": True, "finished": True, "records": [12, 12, 12], "same": True}, f"killed before change {point}"


def test_a_run_killed_before_its_manifest_or_between_old_and_new_ends_the_same(tmp_path: Path) -> None:
    points = [8, 13]
    found = killed_at(points, tmp_path)
    check(found, points)


@pytest.mark.chaos
def test_a_run_killed_at_any_change_ends_the_same(tmp_path: Path) -> None:
    points = list(range(1, CHANGES + 1))
    check(killed_at(points, tmp_path), points)

"""Kill a run at each change that writing a checkpoint makes to the file system: the run resumes from a complete checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CHANGES = 18
"""Changes of an undisturbed run: renames and deletions of the checkpoints that are written in the background."""


def kill_at(points: list[int], folder: Path) -> dict:
    command = [sys.executable, str(ROOT / "tests" / "support" / "kill_points.py"), str(folder), *map(str, points)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1])


def check(result: dict, points: list[int]) -> None:
    assert len(result["changes"]) == CHANGES
    for point in points:
        end = result["points"][str(point)]
        assert end.pop("from_step") == end.pop("complete_step")
        assert end == {"killed": True, "finished": True, "records": [12, 12, 12], "equal": True}, f"killed before change {point}"


def test_a_run_killed_before_a_manifest_or_between_two_checkpoints_ends_the_same(tmp_path: Path) -> None:
    points = [8, 13]
    check(kill_at(points, tmp_path), points)


@pytest.mark.chaos
def test_a_run_killed_at_any_change_ends_the_same(tmp_path: Path) -> None:
    points = list(range(1, CHANGES + 1))
    check(kill_at(points, tmp_path), points)

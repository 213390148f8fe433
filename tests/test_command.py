"""The command line: what a user types wrong, what a job prints, and what a script can rely on."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from yolor_ray import command, presets
from yolor_ray.config import Train

ROOT = Path(__file__).resolve().parents[1]
JOBS = sorted(path.name for path in (ROOT / "jobs").glob("*.py"))
TARGETS = """
from yolor_ray.errors import ConfigError, NonFiniteLossError

def double(config):
    print("on the way")
    return {"doubled": 2 * config.count}

def holes(config):
    return {"ap": float("nan"), "rows": [{"loss": float("inf")}, (1.5, float("-inf"))], "name": "NaN"}

def refuse(config):
    raise ConfigError("count: found 3, expected less")

def fail(config):
    raise NonFiniteLossError("step 7: no finite gradient")

def interrupt(config):
    raise KeyboardInterrupt
"""


@dataclass(frozen=True)
class Settings:
    """Settings of a job under test."""

    count: int = 3
    """How many."""


@pytest.fixture
def job(tmp_path, monkeypatch, capsys):
    """Run a job of this process with arguments; the value is exit status, standard output and standard error."""
    (tmp_path / "job_targets.py").write_text(TARGETS)
    monkeypatch.syspath_prepend(tmp_path)
    for name, value in command.KEEP_MEMORY.items():
        monkeypatch.setenv(name, value)

    def run(function: str, *arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["job.py", *arguments])
        with pytest.raises(SystemExit) as exit_:
            command.run(Settings, f"job_targets:{function}")
        return exit_.value.code, *capsys.readouterr()

    yield run
    sys.modules.pop("job_targets", None)


def process(*arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *options, *arguments], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=60)


def test_the_result_is_one_json_object_on_the_last_line(job):
    status, out, _ = job("double", "--count", "21")
    assert status == 0
    assert out.splitlines() == ["on the way", '{"doubled": 42}']


def test_numbers_that_json_cannot_say_become_null(job):
    status, out, _ = job("holes")
    assert status == 0
    assert json.loads(out) == {"ap": None, "rows": [{"loss": None}, [1.5, None]], "name": "NaN"}


def test_the_users_mistake_exits_2_and_says_what_it_was(job):
    status, out, err = job("refuse")
    assert (status, out) == (2, "")
    assert err == "ConfigError: count: found 3, expected less\n"


def test_an_unknown_flag_exits_2_with_a_suggestion(job):
    status, out, err = job("double", "--coumt", "4")
    assert (status, out) == (2, "")
    assert "--coumt" in err
    assert "--count" in err


def test_a_value_of_the_wrong_type_exits_2(job):
    status, _, err = job("double", "--count", "many")
    assert status == 2
    assert "many" in err


def test_an_interrupted_job_exits_1_without_a_traceback(job):
    assert job("interrupt") == (1, "", "interrupted\n")


def test_any_other_failure_exits_1_with_its_traceback(tmp_path):
    (tmp_path / "job_targets.py").write_text(TARGETS)
    (tmp_path / "job.py").write_text(
        "from dataclasses import dataclass\nfrom yolor_ray import command\n"
        "@dataclass\nclass Settings:\n    count: int = 3\n"
        "if __name__ == '__main__':\n    command.run(Settings, 'job_targets:fail')\n"
    )
    found = process(str(tmp_path / "job.py"))
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr.rstrip().endswith("NonFiniteLossError: step 7: no finite gradient")


@pytest.mark.parametrize("job_name", JOBS)
def test_help_answers_without_torch_and_ray(job_name):
    found = process(f"jobs/{job_name}", "--help", options=("-X", "importtime"))
    assert found.returncode == 0, found.stderr[-2000:]
    assert "usage:" in found.stdout
    imported = set(re.findall(r"\| +([\w.]+)$", found.stderr, re.MULTILINE))
    assert "tyro" in imported
    assert not imported & {"torch", "ray", "cv2", "pyarrow", "pandas", "matplotlib"}


def test_a_preset_takes_overrides_and_refuses_unknown_ones():
    wrong = process("jobs/train.py", "demo", "--optim.epoch", "3")
    assert wrong.returncode == 2
    assert "--optim.epochs" in wrong.stderr
    bad = process("jobs/train.py", "demo", "--optim.epochs", "0")
    assert bad.returncode == 2
    assert "optim.epochs: found 0, expected 1 or more" in bad.stderr


def test_every_preset_is_described_and_is_a_complete_run():
    assert presets.PRESETS.keys() == presets.DESCRIPTIONS.keys()
    assert all(type(preset) is Train for preset in presets.PRESETS.values())

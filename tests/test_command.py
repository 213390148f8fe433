"""The command `yolor-ray` and the scripts of jobs/, each in a process of its own."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

import yolor_ray
from processes import process
from yolor_ray import cli
from yolor_ray.config import TrainConfig, dotted, renamed

ROOT = Path(__file__).resolve().parents[1]
JOBS = sorted(path.name for path in (ROOT / "jobs").glob("*.py"))
HELP = {"benchmark": ["benchmark", "inference"], "tune": ["tune", "search"]}
"""Subcommands whose help lists the flags in question."""


@pytest.mark.parametrize("job_name", JOBS)
def test_help_answers_without_torch_and_ray(job_name):
    completed = process(f"jobs/{job_name}", "--help", options=("-X", "importtime"))
    assert completed.returncode == 0, completed.stderr[-2000:]
    assert "usage:" in completed.stdout
    imported = set(re.findall(r"\| +([\w.]+)$", completed.stderr, re.MULTILINE))
    assert "tyro" in imported
    assert not imported & {"torch", "ray", "cv2", "pyarrow", "pandas", "matplotlib"}


def test_a_preset_takes_overrides_and_refuses_unknown_ones():
    wrong = process("jobs/train.py", "demo", "--optim.epoch", "3")
    assert wrong.returncode == 2
    assert "--optim.epochs" in wrong.stderr
    bad = process("jobs/train.py", "demo", "--optim.epochs", "0")
    assert bad.returncode == 2
    assert "optim.epochs: found 0, expected 1 or more" in bad.stderr


def test_a_process_that_trains_imports_nothing_that_draws():
    """Each worker, the driver and Ray Train's controller would import them in every attempt."""
    program = "import sys, yolor_ray.train.run; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in loaded
    assert not {"matplotlib", "tensorboard"} & set(loaded)


@pytest.mark.parametrize("command", [["-m", "yolor_ray"], ["-c", "from yolor_ray.cli import main; main()"]])
def test_the_command_without_a_job_lists_the_jobs(command):
    overview = process(*command)
    assert (overview.returncode, overview.stdout) == (2, "")
    assert all(f"  {name} " in overview.stderr for name in cli.JOBS)
    help_run = process(*command, "--help")
    assert (help_run.returncode, help_run.stdout) == (0, overview.stderr)


def test_a_mistyped_job_exits_2_with_a_suggestion():
    wrong = process("-m", "yolor_ray", "trian", "demo")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.endswith("ConfigError: job: found 'trian', expected train\n")


def test_the_command_reads_the_flags_of_its_jobs():
    wrong = process("-m", "yolor_ray", "train", "demo", "--optim.epochs", "0")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.endswith("ConfigError: optim.epochs: found 0, expected 1 or more\n")
    assert process("-m", "yolor_ray", "--version").stdout == f"yolor_ray {yolor_ray.__version__}\n"


def test_each_job_of_the_command_has_its_script():
    assert {f"{name}.py" for name in cli.JOBS} == set(JOBS)
    for name in cli.JOBS:
        assert f'main("{name}")' in (ROOT / "jobs" / f"{name}.py").read_text()


def test_every_old_name_is_accepted_by_its_job():
    """The table names settings and flags that exist today, and none that exist under their old name."""
    settings = dotted.flatten(dataclasses.asdict(TrainConfig()))
    assert set(renamed.SETTINGS.values()) <= settings.keys()
    assert not set(renamed.SETTINGS) & settings.keys()
    for name, flags in renamed.FLAGS.items():
        text = process("-m", "yolor_ray", *HELP.get(name, [name]), "--help").stdout
        assert all(f"--{new}" in text for new in flags.values()), name
        assert not any(f"--{old} " in text for old in flags), name

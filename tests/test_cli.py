"""The command line: mistyped arguments, the printed result, exit statuses, and the old names of flags."""

import dataclasses
import functools
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import pytest
import tyro

from processes import process
from yolor_ray import cli
from yolor_ray.config import OptimConfig, TrainConfig, presets
from yolor_ray.errors import check

ROOT = Path(__file__).resolve().parents[1]
TARGETS = """
import dataclasses
import os

from yolor_ray.errors import ConfigError, LedgerError, NonFiniteLossError, Preempted

def double(config):
    print("on the way")
    return {"doubled": 2 * config.count}

def settings(config):
    return {"kind": type(config).__name__, **dataclasses.asdict(config)}

def holes(config):
    return {"ap": float("nan"), "rows": [{"loss": float("inf")}, (1.5, float("-inf"))], "name": "NaN"}

def refuse(config):
    raise ConfigError("count: found 3, expected less")

def fail(config):
    raise NonFiniteLossError("step 7: no finite gradient")

def break_down(config):
    raise LedgerError("epoch 3: record 7 twice")

def interrupt(config):
    raise KeyboardInterrupt

def stop(config):
    raise Preempted("runs/a: stopped", os.environ["SIGNAL_NAME"])
"""


@dataclass(frozen=True)
class Settings:
    """Settings of a job under test."""

    count: int = 3
    """How many."""


@dataclass(frozen=True)
class Compare:
    """A study under test."""

    train: Annotated[TrainConfig, tyro.conf.arg(name="")]
    seeds: int = 3
    """Repeats."""
    words: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Words."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check(self.seeds > 0, "seeds", self.seeds, "1 or more")


@dataclass(frozen=True)
class Seek:
    """Another study under test."""

    train: Annotated[TrainConfig, tyro.conf.arg(name="")]
    trials: int = 5
    """Trainings."""


@pytest.fixture
def job(tmp_path, monkeypatch, capsys):
    """Run a job in this process with arguments; the value is exit status, standard output and standard error.

    The job is given by the name of a target function, or as a reader of arguments, whose target then prints the settings.
    """
    (tmp_path / "job_targets.py").write_text(TARGETS)
    monkeypatch.syspath_prepend(tmp_path)
    for name, value in cli.PROCESS_SETTINGS.items():
        monkeypatch.setenv(name, value)

    def run(target: str | Callable[[list[str], str], object], *arguments: str, name: str = "job") -> tuple[object, str, str]:
        reads_settings = functools.partial(cli.read_flags, Settings)
        reader, function = (reads_settings, target) if isinstance(target, str) else (target, "settings")
        with pytest.raises(SystemExit) as exit_:
            cli.run(name, cli.Job("A job under test.", reader, f"job_targets:{function}"), arguments, "job")
        return exit_.value.code, *capsys.readouterr()

    yield run
    sys.modules.pop("job_targets", None)


train_job = cli.read_training
study_job = functools.partial(cli.read_study, {"compare": Compare, "seek": Seek}, {"compare": "Compares things.", "seek": "Seeks things."})


@pytest.fixture
def preset_file(tmp_path) -> str:
    """Write the settings of a run as its folder holds them; the value is the file's path."""
    config = replace(presets.PRESETS["demo"], optim=OptimConfig(lr=0.5, epochs=7))
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    return str(tmp_path / "config.json")


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


@pytest.mark.parametrize(
    ("reader", "arguments"),
    [
        (cli.read_training, ["nano", "--optim.epoch", "3"]),
        (cli.read_training, ["nano", "--optim.epochs", "three"]),
        (lambda words, program: study_job(words, program), ["compare", "nano", "--optim.epoch", "3"]),
        (cli.read_benchmark, ["ingest", "nano", "--optim.epoch", "3"]),
        (cli.read_benchmark, ["learning", "--optim.epoch", "3"]),
    ],
)
def test_a_mistyped_flag_gets_the_hint_of_its_preset_alone(job, reader, arguments):
    status, out, err = job(reader, *arguments)
    assert (status, out) == (2, "")
    assert err.count("--optim.epochs INT") == 1 and "csp" not in err and len(err.splitlines()) < 15


def test_a_flag_before_the_preset_is_refused_in_one_line(job):
    status, _, err = job(train_job, "--optim.epochs", "3", "nano")
    assert status == 2
    assert err.startswith("ConfigError: preset: found the flag --optim.epochs first, expected one of demo, ")


def test_a_value_of_the_wrong_type_exits_2(job):
    status, _, err = job("double", "--count", "many")
    assert status == 2
    assert "many" in err


def test_an_interrupted_job_exits_130_without_a_traceback(job):
    assert job("interrupt") == (130, "", "interrupted\n")


@pytest.mark.parametrize(
    ("name", "status", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "preempted"), ("SIGHUP", 143, "preempted")]
)
def test_a_training_stopped_by_a_signal_exits_with_its_status(job, monkeypatch, name, status, word):
    monkeypatch.setenv("SIGNAL_NAME", name)
    assert job("stop") == (status, "", f"{word}: runs/a: stopped\n")


def test_a_training_that_cannot_continue_exits_1_and_says_why(job):
    assert job("fail") == (1, "", "NonFiniteLossError: step 7: no finite gradient\n")


def test_a_bug_exits_1_with_its_traceback(tmp_path):
    (tmp_path / "job_targets.py").write_text(TARGETS)
    (tmp_path / "job.py").write_text(
        "from yolor_ray import cli\n"
        "if __name__ == '__main__':\n    cli.run('job', cli.Job('', lambda *_: None, 'job_targets:break_down'), [], 'job')\n"
    )
    completed = process(str(tmp_path / "job.py"))
    assert (completed.returncode, completed.stdout) == (1, "")
    assert completed.stderr.rstrip().endswith("LedgerError: epoch 3: record 7 twice") and "Traceback" in completed.stderr


def test_every_preset_is_described_and_is_a_complete_run():
    assert presets.PRESETS.keys() == presets.DESCRIPTIONS.keys()
    assert all(type(preset) is TrainConfig for preset in presets.PRESETS.values())


@pytest.mark.parametrize(
    "flags",
    [
        ["--preset-file", "FILE", "--optim.epochs", "9", "--run.name", "nano"],
        ["--optim.epochs", "9", "--preset_file", "FILE", "--run.name", "nano"],
        ["--optim.epochs=9", "--run.name=nano", "--preset-file=FILE"],
    ],
)
def test_a_preset_file_runs_with_flags_in_any_order(job, preset_file, flags):
    status, out, err = job(train_job, *(flag.replace("FILE", preset_file) for flag in flags))
    assert status == 0, err
    settings = json.loads(out)
    assert (settings["optim"]["lr"], settings["optim"]["epochs"], settings["run"]["name"]) == (0.5, 9, "nano")
    assert settings["data"] == dataclasses.asdict(presets.PRESETS["demo"].data)


def test_a_preset_still_runs_by_name(job):
    status, out, _ = job(train_job, "small", "--optim.epochs", "4", "--network.widths", "64", "64", "64", "64")
    assert status == 0
    small = presets.PRESETS["small"]
    expected = replace(small, optim=replace(small.optim, epochs=4), network=replace(small.network, widths=(64,) * 4))
    assert json.loads(out) == json.loads(json.dumps({"kind": "TrainConfig", **dataclasses.asdict(expected)}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], ", v4-p7, or --preset-file URL"),
        (["--preset-file"], "expected one argument"),
        (["--preset-file", "FILE", "--preset-file", "other.json"], "other.json, expected one URL"),
        (["demo", "--preset-file", "FILE"], "found the name 'demo' beside --preset-file"),
        (["--preset-file", "FILE", "dmo"], "preset: found 'dmo', expected demo"),
        (["--preset-file", "FILE", "--optim.epoch", "3"], "--optim.epochs"),
        (["--preset-file", "FILE", "--optim.epochs", "0"], "optim.epochs: found 0, expected 1 or more"),
        (["--preset-file", "nowhere.json"], "NotFoundError: nowhere.json: not found"),
        (["--preset-file", ""], "found an empty one"),
        (["--preset-file", __file__], "test_cli.py: not JSON"),
    ],
)
def test_a_preset_file_that_is_no_help_exits_2_with_the_reason(job, preset_file, arguments, message):
    status, out, err = job(train_job, *(argument.replace("FILE", preset_file) for argument in arguments))
    assert (status, out) == (2, "")
    assert message in err


def test_the_help_of_training_tells_of_preset_files(job):
    status, out, _ = job(train_job, "--help")
    assert status == 0
    assert "--preset-file URL" in out


@pytest.mark.parametrize(
    ("arguments", "study", "preset", "study_fields"),
    [
        (["compare"], "Compare", "nano", {"seeds": 3}),
        (["compare", "--seeds", "4", "--data.train", "there"], "Compare", "nano", {"seeds": 4}),
        (["compare", "small", "--data.train", "there", "--words", "a=1", "--words", "b=2"], "Compare", "small", {"words": ["a=1", "b=2"]}),
        (["seek", "csp", "--run.name", "nano", "--trials", "6"], "Seek", "csp", {"trials": 6}),
    ],
)
def test_a_study_is_made_of_a_preset_with_flags_of_both(job, arguments, study, preset, study_fields):
    status, out, err = job(study_job, *arguments)
    assert status == 0, err
    settings = json.loads(out)
    network = json.loads(json.dumps(dataclasses.asdict(presets.PRESETS[preset].network)))
    assert (settings["kind"], settings["train"]["network"]) == (study, network)
    assert study_fields.items() <= settings.items()
    assert settings["train"]["data"]["train"] == ("there" if "there" in arguments else "scenes:320")


def test_a_study_takes_a_preset_file_before_or_after_its_kind(job, preset_file):
    for arguments in (
        ["--preset-file", preset_file, "seek"],
        ["seek", "--trials", "6", "--preset-file", preset_file, "--optim.epochs", "8"],
    ):
        status, out, err = job(study_job, *arguments)
        assert status == 0, err
        assert json.loads(out)["train"]["optim"]["lr"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "compare, seek"),
        (["comparison"], "compare, seek"),
        (["compare", "smal"], "ConfigError: preset: found 'smal', expected small"),
        (["compare", "xyzzy"], "expected one of demo, demo-tasks, nano,"),
        (["compare", "--seeds", "3", "small"], "small"),
        (["compare", "small", "--trials", "3"], "--trials"),
        (["compare", "--seeds", "0"], "ConfigError: seeds: found 0, expected 1 or more"),
        (["compare", "small", "--preset-file", "FILE"], "found the name 'small' beside --preset-file"),
    ],
)
def test_a_study_that_is_typed_wrong_exits_2_with_the_reason(job, preset_file, arguments, message):
    status, out, err = job(study_job, *(argument.replace("FILE", preset_file) for argument in arguments))
    assert (status, out) == (2, "")
    assert message in err


@pytest.mark.parametrize("arguments", [["--help"], ["compare", "--help"], ["seek", "small", "--help"]])
def test_the_help_of_studies_lists_the_presets_everywhere(job, arguments):
    status, out, _ = job(study_job, *arguments)
    assert status == 0
    assert all(f" {name}" in out for name in presets.PRESETS)
    assert "--preset-file URL" in out


@pytest.mark.parametrize("flags", [["--optim.final_lr", "0.5"], ["--optim.final-lr=0.5"]])
def test_the_old_name_of_a_setting_still_works_with_a_warning(job, caplog, flags):
    with caplog.at_level(logging.WARNING):
        status, out, err = job(train_job, "nano", *flags, name="train")
    assert status == 0, err
    assert json.loads(out)["optim"]["final_lr_ratio"] == 0.5
    assert "event=flag_renamed" in caplog.text and "new=--optim.final_lr_ratio" in caplog.text


@pytest.mark.parametrize(("flag", "expected"), [("--cluster.allow-open", True), ("--cluster.no-allow-open", False)])
def test_the_old_name_of_a_switch_still_works_both_ways(job, flag, expected):
    status, out, err = job(train_job, "nano", flag, name="train")
    assert status == 0, err
    assert json.loads(out)["cluster"]["allow_unauthenticated"] is expected

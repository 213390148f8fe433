"""Settings of version 0.1 in the folders of runs and studies."""

import dataclasses
import json
from pathlib import Path

import pytest

from yolor_ray.config import TrainConfig
from yolor_ray.errors import ConfigError, DataError, NonFiniteLossError, SupersededError
from yolor_ray.train.loggers.follower import LOGGERS_FILE
from yolor_ray.train.settings_lock import RUN_FILE, STUDY_FILE, freed_on_failure, lock_settings


def lock(folder: Path, file: str, settings: dict) -> None:
    lock_settings(str(folder), file, settings, mutable=(), defaults={})


def write(folder: Path, file: str, settings: dict, *, final_lr: float) -> None:
    """Write settings with the name of the final learning rate in version 0.1."""
    del settings["optim"]["final_lr_ratio"]
    settings["optim"]["final_lr"] = final_lr
    (folder / file).write_text(json.dumps({"train": settings} if file == STUDY_FILE else settings))


@pytest.mark.parametrize("file", [RUN_FILE, STUDY_FILE])
def test_a_folder_of_version_0_1_is_locked_by_the_current_names(tmp_path: Path, file: str, caplog) -> None:
    settings = dataclasses.asdict(TrainConfig())
    nested = {"train": settings} if file == STUDY_FILE else settings
    write(tmp_path, file, dataclasses.asdict(TrainConfig()), final_lr=settings["optim"]["final_lr_ratio"])
    lock(tmp_path, file, nested)
    assert "event=setting_renamed old=optim.final_lr new=optim.final_lr_ratio" in caplog.text
    write(tmp_path, file, dataclasses.asdict(TrainConfig()), final_lr=0.5)
    with pytest.raises(ConfigError, match=r"optim\.final_lr_ratio was 0\.5 and is now"):
        lock(tmp_path, file, nested)


def test_a_run_is_refused_in_the_folder_of_a_study(tmp_path: Path) -> None:
    lock(tmp_path, STUDY_FILE, {"seed": 1})
    with pytest.raises(ConfigError, match=r"found a study of that name, expected a run or nothing; choose a new run\.name"):
        lock(tmp_path, RUN_FILE, {"seed": 1})


def fail_locked(folder: Path, error: BaseException, *, has_progress: bool = False) -> None:
    with pytest.raises(type(error)), freed_on_failure(str(folder), (RUN_FILE, LOGGERS_FILE), lambda: has_progress):
        lock(folder, RUN_FILE, {"seed": 1})
        raise error


@pytest.mark.parametrize("error", [DataError("a typo"), NonFiniteLossError("lr"), KeyboardInterrupt()])
def test_a_job_that_fails_before_it_trained_frees_the_name(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / LOGGERS_FILE).touch()
    fail_locked(tmp_path, error)
    assert not list(tmp_path.iterdir())
    lock(tmp_path, RUN_FILE, {"seed": 2})


@pytest.mark.parametrize("error", [SupersededError("another job"), SystemExit(143)])
def test_a_job_that_another_replaces_or_a_signal_ends_keeps_the_name(tmp_path: Path, error: BaseException) -> None:
    fail_locked(tmp_path, error)
    assert (tmp_path / RUN_FILE).exists()


def test_a_run_with_a_checkpoint_and_an_older_run_keep_the_name(tmp_path: Path) -> None:
    fail_locked(tmp_path / "trained", DataError("a lost shard"), has_progress=True)
    lock(tmp_path / "older", RUN_FILE, {"seed": 1})
    fail_locked(tmp_path / "older", DataError("a lost shard"))
    assert (tmp_path / "trained" / RUN_FILE).exists() and (tmp_path / "older" / RUN_FILE).exists()

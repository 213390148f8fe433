"""Do what several kinds of study have in common: a folder that is theirs, data that all trials share, their trials and their report."""

import dataclasses
import functools
import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ray import tune

from yolor_ray.config import TrainConfig
from yolor_ray.config.dotted import format_value
from yolor_ray.config.presets import PLAIN
from yolor_ray.data.shards.dataset import Dataset
from yolor_ray.errors import ConfigError
from yolor_ray.io import manifest, storage
from yolor_ray.model.weights import load_weights
from yolor_ray.report.provenance import command, commit
from yolor_ray.study.trials import TrialPlan, run_trials, shared_source, trial_cluster
from yolor_ray.train.run import MUTABLE_SETTINGS, open_datasets
from yolor_ray.train.run_log import read_metrics
from yolor_ray.train.settings_lock import STUDY_FILE, lock_settings

logger = logging.getLogger(__name__)

TRIALS = "trials"
"""Folder of a study that holds the runs of its trials."""
LONGEST_NAME = 120
"""Characters of a folder's name."""
FREE = tuple(f"train.{name}" for name in MUTABLE_SETTINGS)


def folder_of(train: TrainConfig) -> str:
    """Return the URL of the study's folder."""
    return storage.absolute(storage.join(train.run.storage, train.run.name))


def lock_study(kind: str, train: TrainConfig, words: Sequence[str]) -> None:
    """Write down what the study is, or raise ConfigError if another one, or a run, is in its folder."""
    settings = {"kind": kind, "search": list(words), "seed": train.run.seed, "train": dataclasses.asdict(train)}
    lock_settings(folder_of(train), STUDY_FILE, settings, may_change=FREE, older={"train": dataclasses.asdict(TrainConfig())})


@functools.cache
def with_data(train: TrainConfig) -> tuple[TrainConfig, Dataset, Dataset]:
    """Return the run with absolute URLs, as trials run in other folders, beside its data sets; built-in scenes are packed first."""
    train_set, val_set = open_datasets(train)
    data = replace(train.data, train=train_set.url, val=val_set.url)
    pretrained = storage.absolute(train.optim.pretrained) if train.optim.pretrained else ""
    return replace(train, data=data, optim=replace(train.optim, pretrained=pretrained)), train_set, val_set


def as_trial(train: TrainConfig, folder: str, name: str) -> TrainConfig:
    """Return a run as a trial of the study in `folder`."""
    run = replace(train.run, storage=storage.join(folder, TRIALS), name=name)
    return replace(train, run=run, cluster=trial_cluster(train.cluster))


def run_of(trial: TrainConfig) -> str:
    """Return the URL of a trial's run folder."""
    return storage.join(trial.run.storage, trial.run.name)


def is_finished(trial: TrainConfig) -> bool:
    """Tell whether a trial was trained to its end."""
    return manifest.is_published(storage.join(run_of(trial), "weights"))


def check_start(pretrained: str) -> None:
    """Raise ConfigError if trials were to start from weights that have grown with implicit knowledge: they favour theirs."""
    if not pretrained:
        return
    found = load_weights(pretrained)[0].config.implicit
    if found != PLAIN:
        raise ConfigError(
            f"optim.pretrained: found weights with implicit knowledge (align {found.align}, refine {found.refine}) at {pretrained}, "
            "expected those of a network without any, so that all trials start alike"
        )


def train_pending(train: TrainConfig, pending: Sequence[TrainConfig], max_concurrent_trials: int) -> dict[str, str]:
    """Train what is left of the trials that vary `train`, and return why some failed, by the names of their runs."""
    if not pending:
        return {}
    configs = {one.run.name: one for one in pending}
    shared, train_set, _ = with_data(train)
    # With training sets as a dimension, each trial reads its own.
    same = all(one.data.train == shared.data.train for one in pending)
    source = shared_source(train_set, train.cluster) if same else None
    plan = TrialPlan(lambda values: configs[values["trial"]], train.cluster, len(configs), max_concurrent_trials)
    outcomes = run_trials(plan, {"trial": tune.grid_search(list(configs))}, source)
    return {outcome.values["trial"]: outcome.reason for outcome in outcomes if outcome.reason}


def typed_words(values: Mapping[str, Any]) -> str:
    """Return settings as they are typed: `optim.lr=0.01 loss.box=0.1`."""
    return " ".join(f"{name}={format_value(value)}" for name, value in values.items())


def folder_name(text: str) -> str:
    """Return text that may name a folder; what had to be replaced or cut is told apart by a digest."""
    plain = re.sub(r"[^A-Za-z0-9_.=-]+", "_", text)[:LONGEST_NAME]
    return plain if plain == text else f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def minutes_of(run: str) -> float:
    """Return how long the epochs of a run took; 0 if it has none."""
    return sum(row["seconds"] for row in read_metrics(run)) / 60


def done_on(train: TrainConfig) -> dict[str, tuple[str, Any]]:
    """Return what a report says of the run that trials vary, by setting: what it is called, and its value."""
    train, train_set, val_set = with_data(train)
    return {
        "data.train": ("training set", f"{train_set.url}, {train_set.images} images"),
        "data.val": ("validation set", f"{val_set.url}, {val_set.images} images"),
        "optim.epochs": ("epochs", train.optim.epochs),
        "data.image_px": ("input", f"{train.data.image_px} px"),
        "optim.pretrained": ("pretrained weights", train.optim.pretrained or "none"),
    }


def provenance() -> dict[str, Any]:
    """Return with which command and code a study was done."""
    return {"command": command(), "commit": commit()}


def publish_study(folder: str, files: Mapping[str, bytes], result: Mapping[str, Any]) -> dict[str, Any]:
    """Write a study's files and return its result with the URLs of its folder and its report."""
    for name, data in files.items():
        storage.write_bytes(storage.join(folder, name), data)
    report = storage.join(folder, REPORT_FILE)
    logger.info("event=study_done report=%s", report)
    return {"study": folder, "report": report, **result}


REPORT_FILE = "report.md"

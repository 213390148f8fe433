"""Prepare what both kinds of study have in common: a folder that is theirs, data that all trials share, and their trials' names."""

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from yolor_ray import storage
from yolor_ray.config import Train
from yolor_ray.data.shards import Dataset
from yolor_ray.runtime.board import read_rows
from yolor_ray.runtime.claim import claim
from yolor_ray.runtime.machine import command, commit, machine
from yolor_ray.runtime.train import MAY_CHANGE, open_datasets
from yolor_ray.runtime.trials import trial_cluster

STUDY_FILE = "study.json"
TRIALS = "trials"
"""Folder of a study that holds the runs of its trials."""
FREE = tuple(f"train.{name}" for name in MAY_CHANGE)


def folder_of(train: Train) -> str:
    """Return the URL of the study's folder."""
    return storage.absolute(storage.join(train.run.storage, train.run.name))


def claim_study(kind: str, train: Train, words: Sequence[str]) -> str:
    """Return the study's folder, or raise ConfigError if another study is in it."""
    folder = folder_of(train)
    settings = {"kind": kind, "search": list(words), "seed": train.run.seed, "train": dataclasses.asdict(train)}
    older = {"train": dataclasses.asdict(Train())}
    claim(storage.join(folder, STUDY_FILE), settings, may_change=FREE, older=older, name="run.name")
    return folder


def with_data(train: Train) -> tuple[Train, Dataset, Dataset]:
    """Return the run with the full URLs of its data, for trials run in other folders, beside the two data sets."""
    train_set, val_set = open_datasets(train)
    data = replace(train.data, train=train_set.url, val=val_set.url)
    return replace(train, data=data), train_set, val_set


def as_trial(train: Train, folder: str, name: str) -> Train:
    """Return a run as a trial of the study in `folder`."""
    run = replace(train.run, storage=storage.join(folder, TRIALS), name=name)
    return replace(train, run=run, cluster=trial_cluster(train.cluster))


def typed_words(values: Mapping[str, Any]) -> str:
    """Return settings as they are typed: `optim.lr=0.01 loss.box=0.1`."""
    return " ".join(f"{name}={_typed(value)}" for name, value in values.items())


def _typed(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def folder_name(text: str) -> str:
    """Return text that may name a folder; what had to be replaced is told apart by a digest."""
    plain = re.sub(r"[^\w.=-]+", "_", text)
    return plain if plain == text else f"{plain[:80]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def minutes_of(run: str) -> float:
    """Return how long the epochs of a run took; 0 if it has none."""
    return sum(row["seconds"] for row in read_rows(run)) / 60


def circumstances() -> dict[str, Any]:
    """Return with which command, code and machine a study was done."""
    here = machine()
    gpu = f", {here['gpu']}" if here["gpu"] else ""
    return {"command": command(), "commit": commit(), "machine": f"{here['cpu']}, {here['cores']} cores{gpu}, torch {here['torch']}"}

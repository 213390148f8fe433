"""Prepare what both kinds of study have in common: a folder that is theirs, data that all trials share, and their trials' names."""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from yolor_ray import storage
from yolor_ray.config import Train
from yolor_ray.config.named import as_typed
from yolor_ray.data.shards import Dataset
from yolor_ray.runtime.board import read_rows
from yolor_ray.runtime.claim import STUDY_FILE, claim
from yolor_ray.runtime.machine import command, commit
from yolor_ray.runtime.train import MAY_CHANGE, open_datasets
from yolor_ray.runtime.trials import trial_cluster

TRIALS = "trials"
"""Folder of a study that holds the runs of its trials."""
LONGEST_NAME = 120
"""Characters of a folder's name."""
FREE = tuple(f"train.{name}" for name in MAY_CHANGE)


def folder_of(train: Train) -> str:
    """Return the URL of the study's folder."""
    return storage.absolute(storage.join(train.run.storage, train.run.name))


def claim_study(kind: str, train: Train, words: Sequence[str]) -> None:
    """Write down what the study is, or raise ConfigError if another one, or a run, is in its folder."""
    settings = {"kind": kind, "search": list(words), "seed": train.run.seed, "train": dataclasses.asdict(train)}
    claim(folder_of(train), STUDY_FILE, settings, may_change=FREE, older={"train": dataclasses.asdict(Train())})


@functools.cache
def with_data(train: Train) -> tuple[Train, Dataset, Dataset]:
    """Return the run with absolute URLs, as trials run in other folders, beside its data sets; built-in scenes are packed first."""
    train_set, val_set = open_datasets(train)
    data = replace(train.data, train=train_set.url, val=val_set.url)
    pretrained = storage.absolute(train.optim.pretrained) if train.optim.pretrained else ""
    return replace(train, data=data, optim=replace(train.optim, pretrained=pretrained)), train_set, val_set


def as_trial(train: Train, folder: str, name: str) -> Train:
    """Return a run as a trial of the study in `folder`."""
    run = replace(train.run, storage=storage.join(folder, TRIALS), name=name)
    return replace(train, run=run, cluster=trial_cluster(train.cluster))


def typed_words(values: Mapping[str, Any]) -> str:
    """Return settings as they are typed: `optim.lr=0.01 loss.box=0.1`."""
    return " ".join(f"{name}={as_typed(value)}" for name, value in values.items())


def folder_name(text: str) -> str:
    """Return text that may name a folder; what had to be replaced or cut is told apart by a digest."""
    plain = re.sub(r"[^A-Za-z0-9_.=-]+", "_", text)[:LONGEST_NAME]
    return plain if plain == text else f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def minutes_of(run: str) -> float:
    """Return how long the epochs of a run took; 0 if it has none."""
    return sum(row["seconds"] for row in read_rows(run)) / 60


def circumstances() -> dict[str, Any]:
    """Return with which command and code a study was done."""
    return {"command": command(), "commit": commit()}

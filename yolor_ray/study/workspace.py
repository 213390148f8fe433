"""Common steps of all studies: lock the study's folder, resolve the data, train the pending trials, publish the report."""

import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ray import tune

from yolor_ray.cluster.block_source import cluster_source
from yolor_ray.config import NetworkConfig, OptimConfig, TrainConfig
from yolor_ray.config.dotted import format_value
from yolor_ray.config.presets import PLAIN
from yolor_ray.config.renamed import SEARCH, current_search_argument
from yolor_ray.data.shards.dataset import Dataset
from yolor_ray.errors import ConfigError
from yolor_ray.io import manifest, storage
from yolor_ray.io.weights_url import BUILTIN, WEIGHTS_FOLDER, absolute_weights
from yolor_ray.model.transfer import differing_settings
from yolor_ray.model.weights import load_weights
from yolor_ray.report.provenance import command, commit
from yolor_ray.study.trial_log import run_url
from yolor_ray.study.trials import TrialPlan, run_trials, trial_cluster
from yolor_ray.train.checkpoint.checkpoint import complete_checkpoints
from yolor_ray.train.datasets.opening import open_datasets, refuse_shared_images
from yolor_ray.train.run import MUTABLE_SETTINGS
from yolor_ray.train.run_log import METRICS_FILE, read_metrics
from yolor_ray.train.settings_lock import STUDY_FILE, lock_settings
from yolor_ray.train.warm_start import resolve_pretrained

logger = logging.getLogger(__name__)

REPORT_FILE = "report.md"
TRIALS_FOLDER = "trials"
"""Subfolder of a study with the run folders of its trials."""
UNFINISHED = "the trial did not finish"
"""Reason of a failure that Ray Tune reported without a reason."""
MAX_FOLDER_NAME_LENGTH = 120
MUTABLE_STUDY_SETTINGS = tuple(f"train.{name}" for name in MUTABLE_SETTINGS)
"""Settings in study.json that a resumed study may change."""


def study_folder(train: TrainConfig) -> str:
    """Return the URL of the study's folder."""
    return storage.absolute(storage.join(train.run.storage, train.run.name))


def has_trained(folder: str) -> bool:
    """Return True if a trial of the study in `folder` has trained an epoch or written a checkpoint."""
    trials = [storage.join(folder, TRIALS_FOLDER, name) for name in storage.list_names(storage.join(folder, TRIALS_FOLDER))]
    return any(storage.exists(storage.join(trial, METRICS_FILE)) or complete_checkpoints(trial) for trial in trials)


def lock_study(study_kind: str, train: TrainConfig, search: Sequence[str]) -> None:
    """Lock the study's folder to its settings; `search` are the search arguments as typed.

    Raises:
        ConfigError: the folder has a run or a different study.

    """
    settings = {
        "kind": study_kind,
        SEARCH: [current_search_argument(argument) for argument in search],
        "seed": train.run.seed,
        "train": dataclasses.asdict(train),
    }
    defaults = {"train": dataclasses.asdict(TrainConfig())}
    lock_settings(study_folder(train), STUDY_FILE, settings, mutable=MUTABLE_STUDY_SETTINGS, defaults=defaults)


def stored_search(folder: str, search: Sequence[str]) -> list[str]:
    """Return the search arguments in the file of the study, whose names the folders of its trials have; else `search`.

    A study of version 0.1 keeps its folders under the old names of settings.
    """
    url = storage.join(folder, STUDY_FILE)
    stored = json.loads(storage.read_bytes(url)).get(SEARCH, []) if storage.exists(url) else []
    return stored if len(stored) == len(search) else [current_search_argument(argument) for argument in search]


def resolve_data(train: TrainConfig) -> tuple[TrainConfig, Dataset, Dataset]:
    """Return the configuration with absolute URLs, the training set and the validation set; built-in scenes are packed first.

    Trials run in other working directories, so relative URLs would not resolve.
    """
    train_set, val_set = open_datasets(train)
    refuse_shared_images(train, train_set, val_set)
    # The images of the trials are compared here, once.
    data = replace(train.data, train=train_set.url, val=val_set.url, allow_shared_images=True)
    pretrained, teacher = (absolute_weights(url) for url in (train.optim.pretrained, train.optim.teacher))
    return replace(train, data=data, optim=replace(train.optim, pretrained=pretrained, teacher=teacher)), train_set, val_set


def trial_config(train: TrainConfig, folder: str, name: str) -> TrainConfig:
    """Return a configuration as the trial `name` of the study in `folder`."""
    run = replace(train.run, storage=storage.join(folder, TRIALS_FOLDER), name=name)
    return replace(train, run=run, cluster=trial_cluster(train.cluster))


def is_finished(trial: TrainConfig) -> bool:
    """Return True if a trial's weights are published."""
    return manifest.is_published(storage.join(run_url(trial), WEIGHTS_FOLDER))


def check_pretrained(pretrained: str) -> None:
    """Refuse pretrained weights with implicit knowledge: such weights would favour their own variant.

    Raises:
        ConfigError: the weights have implicit knowledge.

    """
    if not pretrained:
        return
    implicit = load_weights(pretrained)[0].config.implicit
    if implicit != PLAIN:
        raise ConfigError(
            f"optim.pretrained: found weights with implicit knowledge (align {implicit.align}, refine {implicit.refine}) at {pretrained}, "
            "expected weights without implicit knowledge, so that all trials start alike"
        )


def check_builtin(optim: OptimConfig, networks: Collection[NetworkConfig]) -> None:
    """Refuse the `builtin` weights where they fit some of the networks of a study only: the others would start from random weights.

    Raises:
        ConfigError: some of the networks fit, and some do not.

    """
    if optim.pretrained != BUILTIN:
        return
    source = load_weights(BUILTIN)[0].config
    fitting = sum(not differing_settings(source, network) for network in networks)
    if 0 < fitting < len(networks):
        found = f"found {BUILTIN!r}, which fits the networks of {fitting} of {len(networks)} settings"
        raise ConfigError(f"optim.pretrained: {found}; expected the same start for all trials: --optim.pretrained ''")


def train_pending(train: TrainConfig, pending: Sequence[TrainConfig], max_concurrent_trials: int) -> dict[str, str]:
    """Train the pending trials, which are variations of `train`; return the reason of each failed trial by run.name."""
    if not pending:
        return {}
    configs = {config.run.name: config for config in pending}
    resolved, train_set, _ = resolve_data(train)
    # If the training set is a dimension of the study, each trial reads its own training set.
    same_data = all(config.data.train == resolved.data.train for config in pending)
    source = cluster_source(train_set) if same_data else None
    plan = TrialPlan(lambda values: configs[values["trial"]], train.cluster, len(configs), max_concurrent_trials)
    outcomes = run_trials(plan, {"trial": tune.grid_search(list(configs))}, source)
    return {outcome.values["trial"]: outcome.reason for outcome in outcomes if outcome.reason}


def format_settings(values: Mapping[str, Any]) -> str:
    """Return settings as command-line text: `optim.lr=0.01 loss.box=0.1`."""
    return " ".join(f"{name}={format_value(value)}" for name, value in values.items())


def folder_name(text: str) -> str:
    """Return a valid folder name for a text; a digest keeps names distinct after replaced or cut characters."""
    plain = re.sub(r"[^A-Za-z0-9_.=-]+", "_", text)[:MAX_FOLDER_NAME_LENGTH]
    return plain if plain == text else f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def training_minutes(run: str) -> float:
    """Return the total time of a run's epochs; 0 without epochs."""
    return sum(row["seconds"] for row in read_metrics(run)) / 60


def describe_training(train: TrainConfig) -> dict[str, tuple[str, Any]]:
    """Return the report's description of the common training run, by setting: a label and a value."""
    train, train_set, val_set = resolve_data(train)
    return {
        "data.train": ("training set", f"{train_set.url}, {train_set.images} images"),
        "data.val": ("validation set", f"{val_set.url}, {val_set.images} images"),
        "optim.epochs": ("epochs", train.optim.epochs),
        "data.image_px": ("input", f"{train.data.image_px} px"),
        "optim.pretrained": ("pretrained weights", resolve_pretrained(train.optim, train.network) or "none"),
        "optim.teacher": ("teacher", train.optim.teacher or "none"),
    }


def provenance() -> dict[str, Any]:
    """Return the command and the commit of the study."""
    return {"command": command(), "commit": commit()}


def publish_study(folder: str, files: Mapping[str, bytes], result: Mapping[str, Any]) -> dict[str, Any]:
    """Write a study's files and return its result with the URLs of its folder and its report."""
    for name, data in files.items():
        storage.write_bytes(storage.join(folder, name), data)
    report = storage.join(folder, REPORT_FILE)
    logger.info("event=study_done report=%s", report)
    return {"study": folder, "report": report, **result}

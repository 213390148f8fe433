"""Translate names of version 0.1, which version 0.2 still accepts with a warning that has the new name.

The tables serve flags, keys of `config.json` and of preset files, `--search` arguments, and files in a run's folder. Version 0.3
removes the tables.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from yolor_ray.errors import ConfigError

logger = logging.getLogger(__name__)

SETTINGS = {
    "augment.plain_epochs": "augment.close_mosaic_epochs",
    "cluster.allow_open": "cluster.allow_unauthenticated",
    "cluster.threads": "cluster.compute_threads",
    "data.threads": "data.decode_threads",
    "loss.classes": "loss.cls",
    "optim.final_lr": "optim.final_lr_ratio",
    "run.checkpoint_every": "run.checkpoint_epochs",
    "run.validate_every": "run.validate_epochs",
}
"""Settings of a training run by dotted name: flags of train, tune and benchmark, and keys of `config.json`."""
FLAGS: dict[str, dict[str, str]] = {
    "benchmark": {"threads": "compute_threads"},
    "evaluate": {"threads": "decode_threads", "kind": "iou_type"},
    "export": {"published": "upstream"},
    "serve": {"threads": "compute_threads"},
    "tune": {"concurrent": "max_concurrent_trials"},
}
"""Further flags by job: old names and new ones."""
FILES = {"attempts.jsonl": "lives.jsonl", "heartbeat.json": "beat.json"}
"""Files of a run's folder: the new name, and the old name that is read where the new one is absent."""
RECORD_FIELDS = {
    "life": "attempt",
    "began": "started_at",
    "after": "restart_reason",
    "outage_s": "downtime_s",
    "token": "fencing_token",
}
"""Keys in the rows of `lives.jsonl` and in `beat.json`."""
METRICS = {"classes": "cls"}
"""Keys in the rows of `metrics.jsonl` and of checkpoints: terms of the loss."""
SEARCH = "search"
"""Key of the search arguments in `study.json`."""
STUDY_PREFIX = "train."
"""Prefix of a run's settings in `study.json`."""


def current_setting(name: str) -> str:
    """Return the dotted name of a setting in this version, and log a warning for an old name."""
    prefix = STUDY_PREFIX if name.startswith(STUDY_PREFIX) else ""
    setting = name.removeprefix(prefix)
    if setting not in SETTINGS:
        return name
    logger.warning("event=setting_renamed old=%s new=%s advice='version 0.3 refuses the old name'", setting, SETTINGS[setting])
    return prefix + SETTINGS[setting]


def current_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by their dotted names of this version; see `current_setting`.

    Raises:
        ConfigError: a setting has a value under its old name and another under its new name.

    """
    current: dict[str, Any] = {}
    for name, value in values.items():
        new_name = current_setting(name)
        if new_name != name and new_name in values:
            raise ConfigError(f"{new_name}: found a value for its old name {name}, too, expected one of the two names")
        current[new_name] = [current_search_argument(argument) for argument in value] if name == SEARCH else value
    return current


def current_search_argument(argument: str) -> str:
    """Return an argument NAME=VALUES of `--search` with the name of this version."""
    name, separator, values = argument.partition("=")
    return current_setting(name) + separator + values


def current_fields(job: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a job's configuration by their names of this version, and log a warning for each old name.

    Raises:
        ConfigError: a field has a value under its old name and another under its new name.

    """
    names = {name: FLAGS.get(job, {}).get(name, name) for name in values}
    for old, new in names.items():
        if old != new and new in values:
            raise ConfigError(f"{new}: found a value for its old name {old}, too, expected one of the two names")
        if old != new:
            logger.warning("event=field_renamed old=%s new=%s advice='version 0.3 refuses the old name'", old, new)
    return {names[name]: value for name, value in values.items()}


def current_arguments(job: str, arguments: Sequence[str]) -> list[str]:
    """Return command-line arguments of a job with the flags of this version; see `current_setting`."""
    flags = FLAGS.get(job, {}) | SETTINGS
    return [_current_argument(argument, flags) for argument in arguments]


def _current_argument(argument: str, flags: Mapping[str, str]) -> str:
    name, separator, value = argument.removeprefix("--").partition("=")
    plain = name.replace("-", "_")
    # The opposite of a switch such as --cluster.allow_open is --cluster.no-allow_open.
    section, dot, last = plain.rpartition(".")
    switch_off = last.startswith("no_")
    old = section + dot + last.removeprefix("no_")
    if not argument.startswith("--") or (plain not in flags and not (switch_off and old in flags)):
        return argument
    new = flags[plain] if plain in flags else flags[old]
    section, dot, last = new.rpartition(".")
    flag = f"--{section}{dot}{'no-' if plain not in flags else ''}{last}"
    logger.warning("event=flag_renamed old=--%s new=%s advice='version 0.3 refuses the old name'", name, flag)
    return f"{flag}{separator}{value}"


def current_metrics(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of a run's metrics by the keys of this version."""
    return {METRICS.get(name, name): value for name, value in row.items()}


def current_record(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of a run's attempts, or a heartbeat, by the keys of this version."""
    return {RECORD_FIELDS.get(name, name): value for name, value in values.items()}

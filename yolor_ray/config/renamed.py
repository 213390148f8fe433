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
    "optim.clip_norm": "optim.clip_ratio",
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
    names = {name: current_setting(name) for name in values}
    _refuse_both_names(names)
    current = {names[name]: value for name, value in values.items()}
    return current | {SEARCH: [current_search_argument(argument) for argument in current[SEARCH]]} if SEARCH in current else current


def _refuse_both_names(names: Mapping[str, str]) -> None:
    """Raise ConfigError if one of the given names is the new name of another; `names` are the new names by the given ones."""
    for given, new in names.items():
        if new != given and new in names:
            raise ConfigError(f"{new}: found a value for its old name {given}, too, expected one of the two names")


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
    _refuse_both_names(names)
    for old, new in names.items():
        if old != new:
            logger.warning("event=field_renamed old=%s new=%s advice='version 0.3 refuses the old name'", old, new)
    return {names[name]: value for name, value in values.items()}


def current_arguments(job: str, arguments: Sequence[str]) -> list[str]:
    """Return command-line arguments of a job with the flags of this version; see `current_setting`.

    Raises:
        ConfigError: a flag is given under its old name and under its new name.

    """
    flags = FLAGS.get(job, {}) | SETTINGS
    current = [_current_argument(argument, flags) for argument in arguments]
    _refuse_both_names({_flag(old): _flag(new) for old, new in zip(arguments, current, strict=True) if old.startswith("--")})
    return current


def _flag(argument: str) -> str:
    """Return the name of a flag without its value, with underscores and without the `no-` of a switch."""
    section, dot, last = argument.removeprefix("--").partition("=")[0].replace("-", "_").rpartition(".")
    return section + dot + last.removeprefix("no_")


def _current_argument(argument: str, flags: Mapping[str, str]) -> str:
    new = flags.get(_flag(argument), "")
    if not argument.startswith("--") or not new:
        return argument
    typed, separator, value = argument.partition("=")
    section, dot, last = new.rpartition(".")
    # The opposite of a switch such as --cluster.allow_open is --cluster.no-allow_open.
    no = "no-" if typed.removeprefix("--").rpartition(".")[2].startswith(("no-", "no_")) else ""
    flag = f"--{section}{dot}{no}{last}"
    logger.warning("event=flag_renamed old=%s new=%s advice='version 0.3 refuses the old name'", typed, flag)
    return f"{flag}{separator}{value}"


def current_metrics(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of a run's metrics by the keys of this version."""
    return {METRICS.get(name, name): value for name, value in row.items()}


def current_record(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of a run's attempts, or a heartbeat, by the keys of this version."""
    return {RECORD_FIELDS.get(name, name): value for name, value in values.items()}

"""Run one job from the command line: flags in, one JSON object out, an exit status that says whose mistake it was.

Flags are read before torch and Ray are imported, so `--help` and a mistyped flag answer at once.
"""

import argparse
import importlib
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tyro

from yolor_ray.cluster.environment import KEEP_MEMORY
from yolor_ray.config import TrainConfig
from yolor_ray.config.dotted import from_json, nearest
from yolor_ray.errors import ConfigError, Preempted, UserError
from yolor_ray.io.redact import hide_secrets, redacted, refuse_credentials

EXIT_FAILED, EXIT_USER, EXIT_PREEMPTED = 1, 2, 143
PRESET_FILE = "Instead of the name, --preset-file URL takes the config.json of a run or the preset.json of a search; flags override it."


def run(config_type: Any, target: str) -> None:
    """Read the flags into `config_type`, call `target` ("module:function") with them and exit.

    The result is printed as the last line on standard output. Exit status: 0 done, 2 the user's mistake, 143 preempted by
    SIGTERM with a checkpoint written, 1 anything else.
    """
    _run(lambda: _read(config_type, sys.argv[1:]), target)


def run_preset(presets: Mapping[str, Any], descriptions: Mapping[str, str], target: str) -> None:
    """Do as `run` with a preset's name as the subcommand; every field may be overridden by its flag."""
    run(_subcommands(presets, descriptions), target)


def run_train(presets: Mapping[str, TrainConfig], descriptions: Mapping[str, str], target: str) -> None:
    """Do as `run_preset`, or start from the settings in a file: `--preset-file URL` instead of a preset's name."""

    def read() -> TrainConfig:
        if not sys.argv[1:]:
            raise ConfigError(f"preset: found none, expected one of {', '.join(presets)}, or --preset-file URL; --help says what they are")
        url, others = _preset_file(sys.argv[1:])
        if url is None:
            return _read(_subcommands(presets, descriptions), others, description=f"Train a preset: its name, then flags. {PRESET_FILE}")
        return _read(TrainConfig, others, default=_from_file(url, _preset_name(others, presets)))

    _run(read, target)


def run_study(
    studies: Mapping[str, Callable[[TrainConfig], Any]],
    descriptions: Mapping[str, str],
    presets: Mapping[str, TrainConfig],
    default: str,
    target: str,
) -> None:
    """Do as `run` with a study's kind as the subcommand, and after it the preset's name that the study is made of.

    Without a name it is `default`, or the settings in a file: `--preset-file URL`. Flags are those of the study and of its preset.
    """

    def read() -> Any:
        url, others = _preset_file(sys.argv[1:])
        kind, rest = next(iter(others), ""), others[1:]
        # Were the preset a subcommand below the study's, the study would refuse the preset's flags as misplaced.
        name = _preset_name(rest, presets) if kind in studies else None
        train = presets[name or default] if url is None else _from_file(url, name)
        hint = f"A preset's name may follow the study's: {', '.join(presets)} (default: {default}). {PRESET_FILE}"
        described = {study: f"{text} {hint}" if study == kind else text for study, text in descriptions.items()}
        kinds = _subcommands({study: make(train) for study, make in studies.items()}, described)
        return _read(kinds, [*others[:1], *rest[name is not None :]], description=hint)

    _run(read, target)


def _run(read: Callable[[], Any], target: str) -> None:
    _restart_with_environment()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    sys.exit(_status(read, target))


def _read(config_type: Any, arguments: Sequence[str], **options: Any) -> Any:
    return tyro.cli(config_type, args=arguments, use_underscores=True, config=(tyro.conf.OmitSubcommandPrefixes,), **options)


def _subcommands(defaults: Mapping[str, Any], descriptions: Mapping[str, str]) -> Any:
    return tyro.extras.subcommand_type_from_defaults(dict(defaults), dict(descriptions), prefix_names=False)


def _preset_file(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the URL behind `--preset-file`, wherever it stands, and the other arguments."""
    reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    reader.add_argument("--preset-file", "--preset_file", action="append", default=[], metavar="URL")
    found, others = reader.parse_known_args(arguments)
    if len(found.preset_file) > 1:
        raise ConfigError(f"--preset-file: found {' and '.join(found.preset_file)}, expected one URL")
    return next(iter(found.preset_file), None), others


def _preset_name(arguments: Sequence[str], presets: Mapping[str, TrainConfig]) -> str | None:
    """Return the preset that the first argument names; None where that is a flag."""
    name = next(iter(arguments), "-")
    if name.startswith("-"):
        return None
    if name not in presets:
        raise ConfigError(f"preset: found {name!r}, expected {nearest(name, presets) or 'one of ' + ', '.join(presets)}")
    return name


def _from_file(url: str, name: str | None) -> TrainConfig:
    if name is not None:
        raise ConfigError(f"preset: found the name {name!r} beside --preset-file {url}, expected one of the two")
    # Storage takes longer to import than `--help` may take.
    from yolor_ray.io import storage

    return from_json(url, storage.read_bytes(url))


def _restart_with_environment() -> None:
    missing = {name: value for name, value in KEEP_MEMORY.items() if name not in os.environ}
    if missing:
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **missing})


def _status(read: Callable[[], Any], target: str) -> int:
    module, function = target.split(":")
    hide_secrets()
    try:
        refuse_credentials("command line: argument", sys.argv[1:])
        config = read()
        result = getattr(importlib.import_module(module), function)(config)
    except UserError as error:
        sys.stderr.write(redacted(f"{type(error).__name__}: {error}\n"))
        return EXIT_USER
    except Preempted as notice:
        sys.stderr.write(f"preempted: {notice}\n")
        return EXIT_PREEMPTED
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return EXIT_FAILED
    sys.stdout.write(json.dumps(_without_nan(result)) + "\n")
    sys.stdout.flush()
    return 0


def _without_nan(value: Any) -> Any:
    """Return `value` with NaN and infinity as null: JSON has no word for them."""
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

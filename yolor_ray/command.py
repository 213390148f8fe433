"""Run one job from the command line: flags in, one JSON object out, an exit status that says whose mistake it was.

Flags are read before torch and Ray are imported, so `--help` and a mistyped flag answer at once.
"""

import importlib
import json
import logging
import math
import os
import sys
from collections.abc import Mapping
from typing import Any

import tyro

from yolor_ray.config.process import KEEP_MEMORY
from yolor_ray.errors import UserError

logger = logging.getLogger(__name__)

EXIT_FAILED, EXIT_USER = 1, 2


def run(config_type: Any, target: str) -> None:
    """Read the flags into `config_type`, call `target` ("module:function") with them and exit.

    The result is printed as the last line on standard output. Exit status: 0 done, 2 the user's mistake, 1 anything else.
    """
    _restart_with_environment()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        config = tyro.cli(config_type, use_underscores=True, config=(tyro.conf.OmitSubcommandPrefixes,))
    except UserError as error:
        sys.exit(_refuse(error))
    sys.exit(_call(target, config))


def run_preset(presets: Mapping[str, Any], descriptions: Mapping[str, str], target: str) -> None:
    """Do as `run` with a preset's name as the subcommand; every field may be overridden by its flag."""
    run(tyro.extras.subcommand_type_from_defaults(dict(presets), dict(descriptions), prefix_names=False), target)


def _restart_with_environment() -> None:
    missing = {name: value for name, value in KEEP_MEMORY.items() if name not in os.environ}
    if missing:
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **missing})


def _refuse(error: UserError) -> int:
    sys.stderr.write(f"{type(error).__name__}: {error}\n")
    return EXIT_USER


def _call(target: str, config: Any) -> int:
    module, function = target.split(":")
    try:
        result = getattr(importlib.import_module(module), function)(config)
    except UserError as error:
        return _refuse(error)
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

"""Parse the files of a checkpoint: hashes prove that the bytes are those that were written, and these checks that they are a checkpoint."""

import json
import math
import re
from collections.abc import Callable
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from yolor_ray.data.loading import epoch_ledger
from yolor_ray.errors import IntegrityError

SECTIONS = ("network", "average", "optimizer", "momentum")
"""First parts of the names of tensors; version 0.2 wrote `momentum`."""
SCALER_KEYS = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_ledger(value: Any) -> bool:
    try:
        epoch_ledger.from_json(value)
    except ValueError:
        return False
    return True


STATE_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "digest": (lambda v: isinstance(v, str), "text"),
    "step": (_is_count, "a whole number from 0"),
    "updates": (_is_count, "a whole number from 0"),
    "epoch": (_is_count, "a whole number from 0"),
    "seen": (_is_ledger, "one bit per record"),
    "best_fitness": (_is_number, "a number"),
    "best": (lambda v: isinstance(v, str) and re.fullmatch(r"(best/[\w-]+)?", v) is not None, "a folder inside best/"),
    "rows": (lambda v: isinstance(v, list) and all(isinstance(row, dict) and _is_count(row.get("epoch")) for row in v), "rows of epochs"),
}
"""Check and expectation for the value of each key of the state."""
OPTIONAL_STATE_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "mean_norm": (_is_number, "a number"),
    "task_norms": (lambda v: isinstance(v, dict) and all(_is_number(norm) and norm > 0 for norm in v.values()), "norms above 0 by task"),
    "micro_batches": (lambda v: _is_count(v) and v > 0, "a whole number from 1"),
    "scaler": (
        lambda v: v == {} or (isinstance(v, dict) and v.keys() == SCALER_KEYS and all(map(_is_number, v.values()))),
        "a scaler's state",
    ),
}
"""The same for keys that checkpoints of older versions lack."""


def parse_state(url: str, data: bytes) -> dict[str, Any]:
    """Return the state in a file of a checkpoint.

    Raises:
        IntegrityError: the file is no state of a run.

    """
    try:
        state = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{url}: found no JSON ({error}), expected the state of a run") from error
    if not isinstance(state, dict) or STATE_CHECKS.keys() - state.keys():
        raise IntegrityError(f"{url}: found no state of a run, expected {', '.join(STATE_CHECKS)}")
    for key, (is_valid, expected) in (STATE_CHECKS | OPTIONAL_STATE_CHECKS).items():
        if key in state and not is_valid(state[key]):
            raise IntegrityError(f"{url}: {key}: found {state[key]!r:.100}, expected {expected}")
    return state


def parse_tensors(url: str, data: bytes) -> dict[str, Tensor]:
    """Return the tensors in a file of a checkpoint, by `SECTION/NAME`.

    Raises:
        IntegrityError: the file does not hold tensors, or holds some of another section.

    """
    try:
        tensors = safetensors.torch.load(data)
    except SafetensorError as error:
        raise IntegrityError(f"{url}: found no safetensors ({error}), expected the tensors of a run") from error
    unknown = [name for name in tensors if name.partition("/")[0] not in SECTIONS]
    if unknown:
        raise IntegrityError(f"{url}: found tensor {unknown[0]!r}, expected names that begin with one of {', '.join(SECTIONS)}")
    return tensors

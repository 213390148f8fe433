"""Read and change the settings of a training run by dotted name.

The name is a setting's command-line flag, its Tune key, the logged parameter and its key in `config.json`, so whatever
comes in by one of these ways is checked here in the same words.
"""

import dataclasses
import difflib
import functools
import json
import math
import sys
import typing
from collections.abc import Collection, Mapping
from typing import Any, Literal, TypeVar

from yolor_ray.config.train import TrainConfig
from yolor_ray.errors import ConfigError, check

Settings = TypeVar("Settings")
EXPECTED = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false", tuple[int, ...]: "whole numbers"}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted name."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def field_type(name: str) -> Any:
    """Return the type of a setting, or raise ConfigError with the names that are nearest."""
    known = _field_types(TrainConfig)
    if name not in known:
        raise ConfigError(f"{name}: found no setting of that name, expected {nearest(name, known) or 'a flag of jobs/train.py'}")
    return known[name]


@functools.cache
def _field_types(owner: type, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(owner).items():
        is_part = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        found |= _field_types(hint, f"{prefix}{name}.") if is_part else {prefix + name: hint}
    return found


def nearest(name: str, known: Collection[str]) -> str:
    """Return the known names that someone may have meant, as text; empty when none is near."""
    return " or ".join([whole for whole in known if whole.endswith(f".{name}")] or difflib.get_close_matches(name, known))


def replace_fields(config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration with other values for some dotted names; lists stand for tuples, whole numbers for others.

    Raises:
        ConfigError: a name is unknown, a value has the wrong type, or the configuration refuses it.

    """
    return _replace(config, {name: coerce(name, value) for name, value in values.items()}, "")


def _replace(config: Settings, values: Mapping[str, Any], prefix: str) -> Settings:
    changed = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        name = prefix + field.name
        # All values of one part are set at once: alone, one of them may contradict what was there.
        if any(other.startswith(f"{name}.") for other in values):
            changed[field.name] = _replace(getattr(config, field.name), values, f"{name}.")
        elif name in values:
            changed[field.name] = values[name]
    return dataclasses.replace(config, **changed)  # type: ignore[type-var]


def coerce(name: str, value: Any) -> Any:
    """Return a value as the setting holds it, or raise ConfigError if it is of another type."""
    expected = field_type(name)
    if expected is float and type(value) is int and abs(value) <= sys.float_info.max:
        return float(value)
    if typing.get_origin(expected) is tuple and isinstance(value, list):
        value = tuple(value)
    check(_fits(expected, value), name, value, _expected_values(expected))
    return value


def _fits(expected: Any, value: Any) -> bool:
    if expected is float:
        return isinstance(value, float) and math.isfinite(value)
    if typing.get_origin(expected) is Literal:
        return value in typing.get_args(expected)
    if typing.get_origin(expected) is tuple:
        return isinstance(value, tuple) and all(_fits(typing.get_args(expected)[0], item) for item in value)
    return type(value) is expected


def _expected_values(expected: Any) -> str:
    if expected in EXPECTED:
        return EXPECTED[expected]
    several = typing.get_origin(expected) is tuple
    return ("some of " if several else "one of ") + ", ".join(typing.get_args(typing.get_args(expected)[0] if several else expected))


def parse_value(name: str, text: str) -> Any:
    """Return the value of a setting from what was typed: `1e-2`, `true`, `add`, or `1 2 2 1` for several numbers."""
    # What cannot be read stays text, and is refused as such.
    return coerce(name, _parse(field_type(name), text))


def _parse(expected: Any, text: str) -> Any:
    try:
        if expected is bool:
            return {"true": True, "false": False}.get(text.lower(), text)
        if expected in (int, float):
            return expected(text)
        if typing.get_origin(expected) is tuple:
            item = typing.get_args(expected)[0]
            return tuple(item(word) if item is int else word for word in text.split())
    except ValueError:
        return text
    return text


def format_value(value: Any) -> str:
    """Return a value of a setting as it is typed; `typed` reads it back."""
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def from_json(place: str, data: bytes) -> TrainConfig:
    """Return the configuration in a `config.json` of a run folder; what an older version did not know has its default.

    Raises:
        ConfigError: the data, which came from `place`, are no such file.

    """
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place}: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{place}: found {type(values).__name__}, expected the settings of a run by name, as in its config.json")
    try:
        return replace_fields(TrainConfig(), flatten(values))
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error

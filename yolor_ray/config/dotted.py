"""Read and replace the settings of a training run by dotted name.

The dotted name of a setting is its command-line flag, its Tune key, the logged parameter and its key in `config.json`. Values
from all four sources are checked here, with the same error messages.
"""

import dataclasses
import difflib
import json
import math
import sys
import typing
from collections.abc import Collection, Mapping
from typing import Any, Literal, TypeVar

from yolor_ray.config.renamed import current_settings
from yolor_ray.config.train import TrainConfig
from yolor_ray.errors import ConfigError, check

Config = TypeVar("Config")
EXPECTED = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false", tuple[int, ...]: "whole numbers"}
"""Expected values of a setting by its type, for error messages."""


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _field_types(config_class: type, prefix: str = "") -> dict[str, Any]:
    types: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(config_class).items():
        is_section = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        types |= _field_types(hint, f"{prefix}{name}.") if is_section else {prefix + name: hint}
    return types


SETTING_TYPES = _field_types(TrainConfig)
"""Types of the settings by dotted name."""


def field_type(name: str) -> Any:
    """Return the type of a setting.

    Raises:
        ConfigError: no setting has the name; the message has similar names.

    """
    if name not in SETTING_TYPES:
        expected = similar_names(name, SETTING_TYPES) or "a flag of jobs/train.py"
        raise ConfigError(f"{name}: found no setting of that name, expected {expected}")
    return SETTING_TYPES[name]


def similar_names(name: str, names: Collection[str]) -> str:
    """Return the names that are similar to a mistyped one, joined by "or"; empty when none is similar."""
    return " or ".join([full for full in names if full.endswith(f".{name}")] or difflib.get_close_matches(name, names))


def replace_fields(config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration with new values for some dotted names; see `coerce` for the types.

    Raises:
        ConfigError: a name is unknown, a value has the wrong type, or the configuration refuses a value.

    """
    return _replace(config, {name: coerce(name, value) for name, value in values.items()}, "")


def _replace(config: Config, values: Mapping[str, Any], prefix: str) -> Config:
    changed = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        name = prefix + field.name
        # All values of one section are set at once: a single new value may contradict the old ones.
        if any(dotted.startswith(f"{name}.") for dotted in values):
            changed[field.name] = _replace(getattr(config, field.name), values, f"{name}.")
        elif name in values:
            changed[field.name] = values[name]
    return dataclasses.replace(config, **changed)  # type: ignore[type-var]


def coerce(name: str, value: Any) -> Any:
    """Return a value as the type of its setting: a list becomes a tuple, and a whole number a float.

    Raises:
        ConfigError: the value has another type.

    """
    expected = field_type(name)
    if expected is float and type(value) is int and abs(value) <= sys.float_info.max:
        return float(value)
    if typing.get_origin(expected) is tuple and isinstance(value, list):
        value = tuple(value)
    check(_has_type(expected, value), name, value, _expected_values(expected))
    return value


def _has_type(expected: Any, value: Any) -> bool:
    if expected is float:
        return isinstance(value, float) and math.isfinite(value)
    if typing.get_origin(expected) is Literal:
        return value in typing.get_args(expected)
    if typing.get_origin(expected) is tuple:
        return isinstance(value, tuple) and all(_has_type(typing.get_args(expected)[0], item) for item in value)
    return type(value) is expected


def _expected_values(expected: Any) -> str:
    if expected in EXPECTED:
        return EXPECTED[expected]
    if typing.get_origin(expected) is tuple:
        return "some of " + ", ".join(typing.get_args(typing.get_args(expected)[0]))
    return "one of " + ", ".join(typing.get_args(expected))


def parse_value(name: str, text: str) -> Any:
    """Parse a typed value of a setting: `1e-2`, `true`, `add`, or `1 2 2 1` for several numbers.

    Raises:
        ConfigError: the text is no value of the setting.

    """
    # Text that cannot be parsed remains text, and `coerce` refuses it with the text in the message.
    return coerce(name, _parse_text(field_type(name), text))


def _parse_text(expected: Any, text: str) -> Any:
    try:
        if expected is bool:
            return {"true": True, "false": False}.get(text.lower(), text)
        if expected in (int, float):
            return expected(text)
        if typing.get_origin(expected) is tuple:
            item_type = typing.get_args(expected)[0]
            return tuple(item_type(word) if item_type is int else word for word in text.split())
    except ValueError:
        return text
    return text


def format_value(value: Any) -> str:
    """Return a value of a setting as text for `parse_value`."""
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def from_json(url: str, data: bytes) -> TrainConfig:
    """Return the configuration in a `config.json` of a run folder, whose URL is for error messages.

    Settings that the file of an older version lacks have their defaults. Old names of settings are accepted with a warning.

    Raises:
        ConfigError: the data are no settings of a run, or have a setting under both its old and its new name.

    """
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{url}: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{url}: found {type(values).__name__}, expected the settings of a run by name, as in its config.json")
    try:
        return replace_fields(TrainConfig(), current_settings(flatten(values)))
    except ConfigError as error:
        raise ConfigError(f"{url}: {error}") from error

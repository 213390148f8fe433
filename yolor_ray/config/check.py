"""Refuse bad values in the one wording that all configurations share."""

from yolor_ray.errors import ConfigError


def check(ok: bool, name: str, found: object, expected: str) -> None:
    """Raise ConfigError with what was found and what was expected unless `ok`; `name` is the dotted flag."""
    if not ok:
        raise ConfigError(f"{name}: found {found!r}, expected {expected}")

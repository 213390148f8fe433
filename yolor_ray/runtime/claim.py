"""Keep a run or a study to the settings that it was started with: the first job writes them down, later ones must agree."""

import json
from collections.abc import Mapping
from typing import Any

from yolor_ray import storage
from yolor_ray.config.named import flat
from yolor_ray.errors import ConfigError


def claim(place: str, settings: Mapping[str, Any], *, may_change: tuple[str, ...], older: Mapping[str, Any], name: str) -> None:
    """Write nested settings to `place`, or raise ConfigError if those of another job are there already.

    Args:
        place: URL of the file.
        settings: what this job was told.
        may_change: how the dotted names begin of settings that may differ, as they do not change what comes out.
        older: what settings mean that the file does not name, because an older version did not know them.
        name: what to change for a fresh start, such as run.name.
    """
    if not storage.exists(place):
        storage.write_bytes(place, json.dumps(settings, indent=1).encode())
        return
    mine, theirs = _flat_json(settings), _flat_json(older) | flat(json.loads(storage.read_bytes(place)))
    changed = {key: (theirs.get(key), value) for key, value in mine.items() if theirs.get(key) != value and not key.startswith(may_change)}
    if changed:
        shown = ", ".join(f"{key} was {old!r} and is now {new!r}" for key, (old, new) in changed.items())
        raise ConfigError(f"{place}: this was started with other settings: {shown}; go on with those or choose a new {name}")


def _flat_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings by dotted name as a file holds them: with lists for tuples."""
    return flat(json.loads(json.dumps(values)))

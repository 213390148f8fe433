"""Keep a run or a study to the settings that it was started with: the first job writes them down, later ones must agree."""

import json
from collections.abc import Mapping
from typing import Any

from yolor_ray.config.dotted import flatten
from yolor_ray.errors import ConfigError
from yolor_ray.io import storage
from yolor_ray.io.redact import refuse_credentials

RUN_FILE, STUDY_FILE = "config.json", "study.json"
FOLDER_KINDS = {RUN_FILE: "a run", STUDY_FILE: "a study"}
"""What a folder is, by the file that holds its settings."""


def lock_settings(folder: str, file: str, settings: Mapping[str, Any], *, may_change: tuple[str, ...], older: Mapping[str, Any]) -> None:
    """Write nested settings into a run's or a study's folder, or raise ConfigError if another run or study is in it already,
    or if a URL in them holds credentials.

    Args:
        folder: URL of the folder.
        file: RUN_FILE or STUDY_FILE.
        settings: what this job was told.
        may_change: how the dotted names begin of settings that may differ, as they do not change what comes out.
        older: what settings mean that the file does not name, because an older version did not know them.
    """
    refuse_credentials("", settings)
    for other, what in FOLDER_KINDS.items():
        if other != file and storage.exists(storage.join(folder, other)):
            raise ConfigError(f"{folder}: found {what} of that name, expected {FOLDER_KINDS[file]} or nothing; choose a new run.name")
    place = storage.join(folder, file)
    if not storage.exists(place):
        storage.write_bytes(place, json.dumps(settings, indent=1).encode())
        return
    mine, theirs = _flat_json(settings), _flat_json(older) | flatten(json.loads(storage.read_bytes(place)))
    changed = {key: (theirs.get(key), value) for key, value in mine.items() if theirs.get(key) != value and not key.startswith(may_change)}
    if changed:
        shown = ", ".join(f"{key} was {old!r} and is now {new!r}" for key, (old, new) in changed.items())
        raise ConfigError(
            f"{place}: {FOLDER_KINDS[file]} was started with other settings: {shown}; go on with those or choose a new run.name"
        )


def _flat_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings by dotted name as a file holds them: with lists for tuples."""
    return flatten(json.loads(json.dumps(values)))

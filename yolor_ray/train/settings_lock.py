"""Lock a run, a study or a benchmark to the settings of its first job: that job writes them down, and later jobs must agree.

A first job that fails before anything was trained gives the name free again: its settings may have been the mistake.
"""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from yolor_ray.config.dotted import flatten
from yolor_ray.config.renamed import STUDY_PREFIX, current_settings
from yolor_ray.errors import ConfigError, StorageError, SupersededError, TrainingError, UserError
from yolor_ray.io import storage
from yolor_ray.io.redact import refuse_credentials
from yolor_ray.train.datasets.opening import validation_url

logger = logging.getLogger(__name__)

RUN_FILE, STUDY_FILE, BENCHMARK_FILE = "config.json", "study.json", "benchmark.json"
FOLDER_KINDS = {RUN_FILE: "a run", STUDY_FILE: "a study", BENCHMARK_FILE: "a benchmark"}
"""Content of a folder, by the name of its settings file."""


def lock_settings(folder: str, file: str, settings: Mapping[str, Any], *, mutable: tuple[str, ...], defaults: Mapping[str, Any]) -> None:
    """Write nested settings into the folder of a run, a study or a benchmark, or compare them with the settings in the folder.

    Args:
        folder: URL of the folder.
        file: a key of FOLDER_KINDS.
        settings: settings of this job.
        mutable: prefixes of the dotted names that may differ, because they do not change the result.
        defaults: values of the settings that the file lacks, because an older version wrote it.

    Raises:
        ConfigError: the settings differ, the folder holds another kind, or a URL in the settings holds credentials.

    """
    refuse_credentials("", settings)
    for other_file, content in FOLDER_KINDS.items():
        if other_file != file and storage.exists(storage.join(folder, other_file)):
            raise ConfigError(f"{folder}: found {content} of that name, expected {FOLDER_KINDS[file]} or nothing; choose a new run.name")
    url = storage.join(folder, file)
    if not storage.exists(url):
        storage.write_bytes(url, json.dumps(settings, indent=1).encode())
        return
    stored = _flatten_json(defaults) | current_settings(flatten(_read_settings(url)))
    stored = _with_validation(stored)
    locked = {name: value for name, value in _with_validation(_flatten_json(settings)).items() if not name.startswith(mutable)}
    changed = {name: (stored.get(name), value) for name, value in locked.items() if stored.get(name) != value}
    if changed:
        changes = ", ".join(f"{name} was {old!r} and is now {new!r}" for name, (old, new) in changed.items())
        raise ConfigError(
            f"{url}: {FOLDER_KINDS[file]} was started with other settings: {changes}; keep those settings or choose a new run.name"
        )


def _read_settings(url: str) -> dict[str, Any]:
    try:
        values = json.loads(storage.read_bytes(url))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{url}: found no JSON ({error}), expected the settings that its first job wrote; restore the file") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{url}: found {type(values).__name__}, expected settings by name; restore the file")
    return values


@contextlib.contextmanager
def freed_on_failure(folder: str, files: Sequence[str], has_progress: Callable[[], bool]) -> Iterator[None]:
    """Delete the settings that the block wrote into the folder if the block fails before anything was trained.

    Args:
        folder: URL of the folder of a run, a study or a benchmark.
        files: a key of FOLDER_KINDS, and files that go with it.
        has_progress: returns True if the folder holds something to resume from.

    """
    url = storage.join(folder, files[0])
    existed = storage.exists(url)
    try:
        yield
    except (UserError, TrainingError, KeyboardInterrupt) as error:
        with contextlib.suppress(StorageError):
            # The folder of a superseded job belongs to the other job.
            if not isinstance(error, SupersededError) and not existed and storage.exists(url) and not has_progress():
                for file in files:
                    storage.delete(storage.join(folder, file))
                logger.info("event=name_freed folder=%s reason='the job failed before anything was trained'", folder)
        raise


def _with_validation(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings by dotted name with the validation set of built-in scenes, which version 0.2 wrote as the default."""
    names = {f"{prefix}data.val": f"{prefix}data.train" for prefix in ("", STUDY_PREFIX) if f"{prefix}data.val" in settings}
    current = dict(settings)
    for val, train in names.items():
        train_url, val_url = settings.get(train), settings[val]
        # Other types come from a damaged file, and differ from the settings of every job.
        if isinstance(train_url, str) and isinstance(val_url, str):
            current[val] = validation_url(train_url, val_url)
    return current


def _flatten_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings by dotted name, as a JSON file holds them: with lists for tuples."""
    return flatten(json.loads(json.dumps(values)))

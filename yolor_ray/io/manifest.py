"""TODO module docstring."""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import PurePosixPath

from yolor_ray.errors import IntegrityError, NotFoundError, StorageError
from yolor_ray.io.filesystem import attempt
from yolor_ray.io.storage import _read, delete, exists, join, read_bytes, write_bytes

MANIFEST = "manifest.json"


def publish(url: str, files: Mapping[str, bytes]) -> None:
    """Write files into a folder and then the manifest that makes them count; an older manifest goes first."""
    for name in files:
        if name == MANIFEST or name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise StorageError(f"{url}: found file name {name!r}, expected a plain one other than {MANIFEST}")
    delete(join(url, MANIFEST))
    for name, data in files.items():
        write_bytes(join(url, name), data)
    listed = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in sorted(files.items())}
    write_bytes(join(url, MANIFEST), json.dumps({"files": listed}, indent=1).encode())


def is_published(url: str) -> bool:
    """Tell whether a folder's manifest is there."""
    return exists(join(url, MANIFEST))


def read_published(url: str, names: Collection[str] | None = None) -> dict[str, bytes]:
    """Return the files of a published folder (or those named), each checked for size and SHA-256: DamagedError if one fails."""
    listed = _manifest(join(url, MANIFEST))
    absent = sorted(set(names or ()) - set(listed))
    if absent:
        raise IntegrityError(f"{url}: found {', '.join(sorted(listed))} in {MANIFEST}, expected also {', '.join(absent)}")
    return {name: _verified(join(url, name), listed[name]) for name in (listed if names is None else names)}


def _manifest(url: str) -> dict[str, tuple[int, str]]:
    try:
        files = json.loads(read_bytes(url))["files"]
        return {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise IntegrityError(f'{url}: found no manifest, expected {{"files": {{name: {{"bytes", "sha256"}}}}}}') from error


def _verified(url: str, expected: tuple[int, str]) -> bytes:
    def read() -> bytes:
        data = _read(url)
        found = len(data), hashlib.sha256(data).hexdigest()
        if found != expected:
            raise IntegrityError(f"found {found[0]} bytes with SHA-256 {found[1]}, expected {expected[0]} and {expected[1]}")
        return data

    try:
        return attempt(url, "read", read)
    except NotFoundError as error:
        raise IntegrityError(f"{url}: not found, expected it as {MANIFEST} lists it") from error

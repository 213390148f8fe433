"""Publish folders of files: the files are written first, and then `manifest.json` with their sizes and SHA-256.

A published folder is complete exactly when its manifest exists.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import PurePosixPath
from typing import NamedTuple

import pyarrow as pa

from yolor_ray.errors import IntegrityError, NotFoundError, StorageError
from yolor_ray.io.storage import delete, exists, join, read_bytes, write_bytes

MANIFEST = "manifest.json"


class FileEntry(NamedTuple):
    """Size and hash of a file, as its manifest lists them."""

    bytes: int
    sha256: str
    """SHA-256 of the content, hexadecimal."""


def publish(url: str, files: Mapping[str, bytes]) -> None:
    """Write files into a folder, and then their manifest; an older manifest is deleted first."""
    publish_with(url, {}, files)


def publish_with(url: str, written: Mapping[str, FileEntry], files: Mapping[str, bytes]) -> None:
    """Write files into a folder, and then a manifest of them and of files that are there already; an older manifest is deleted first.

    Args:
        url: folder.
        written: entries of files that are in the folder, by name.
        files: content of further files, by name.
    """
    for name in (*written, *files):
        if not _is_plain(name):
            raise StorageError(f"{url}: found file name {name!r}, expected a plain one other than {MANIFEST}")
    delete(join(url, MANIFEST))
    for name, data in files.items():
        write_bytes(join(url, name), data)
    entries = {**written, **{name: entry_of(data) for name, data in files.items()}}
    content = {"files": {name: entries[name]._asdict() for name in sorted(entries)}}
    write_bytes(join(url, MANIFEST), json.dumps(content, indent=1).encode())


def entry_of(data: bytes | memoryview | pa.Buffer) -> FileEntry:
    """Return the manifest's entry of a file with this content."""
    return FileEntry(memoryview(data).nbytes, hashlib.sha256(data).hexdigest())


def _is_plain(name: str) -> bool:
    """Return True for the name of a file inside a published folder; any other name could lead to a file outside of the folder."""
    return name.isprintable() and name not in ("", MANIFEST) and not name.startswith("/") and ".." not in PurePosixPath(name).parts


def is_published(url: str) -> bool:
    """Return True if a folder has a manifest."""
    return exists(join(url, MANIFEST))


def read_published(url: str, names: Collection[str] | None = None) -> dict[str, bytes]:
    """Return the verified content of a published folder's files by name; `names` selects files, None means all.

    Raises:
        NotFoundError: the folder has no manifest.
        IntegrityError: a file is absent or has another size or SHA-256 than the manifest says, or the manifest is damaged.

    """
    entries = read_manifest(url)
    absent = sorted(set(names or ()) - set(entries))
    if absent:
        raise IntegrityError(f"{url}: found {', '.join(sorted(entries))} in {MANIFEST}, expected also {', '.join(absent)}")
    return {name: _read_verified(join(url, name), *entries[name]) for name in (entries if names is None else names)}


def read_manifest(folder: str) -> dict[str, FileEntry]:
    """Return the entry of each file of a published folder by name.

    Raises:
        NotFoundError: the folder has no manifest.
        IntegrityError: the manifest is damaged.

    """
    url = join(folder, MANIFEST)
    try:
        files = json.loads(read_bytes(url))["files"]
        entries = {name: FileEntry(entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise IntegrityError(f'{url}: found no manifest, expected {{"files": {{name: {{"bytes", "sha256"}}}}}}') from error
    for name, (size, sha256) in entries.items():
        if not _is_plain(name):
            raise IntegrityError(f"{url}: found file name {name!r}, expected a plain one, inside the folder")
        if type(size) is not int or size < 0 or not isinstance(sha256, str):
            raise IntegrityError(f"{url}: {name}: found size {size!r} and SHA-256 {sha256!r}, expected a number of bytes and a text")
    return entries


def _read_verified(url: str, size: int, sha256: str) -> bytes:
    def verify(data: bytes) -> None:
        found_sha256 = hashlib.sha256(data).hexdigest()
        if (len(data), found_sha256) != (size, sha256):
            raise IntegrityError(f"found {len(data)} bytes with SHA-256 {found_sha256}, expected {size} and {sha256}")

    try:
        return read_bytes(url, verify, expected_bytes=size)
    except NotFoundError as error:
        raise IntegrityError(f"{url}: not found, expected it as {MANIFEST} lists it") from error

"""Reach s3:// URLs and local folders through one pyarrow filesystem.

Files appear whole or not at all, and a published folder is complete exactly when its `manifest.json` is there.
Credentials, region and endpoint come from the `AWS_*` variables; no message ever repeats them.
"""

import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from yolor_ray.errors import IntegrityError, NotFoundError, StorageError
from yolor_ray.io.filesystem import Result, attempt, filesystem

MULTIPART_BYTES = 10 * 2**20
"""From here on pyarrow's delayed open uploads in parts, and leaves an empty object if the store refuses to begin: it must not delay."""
TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")


def absolute(url: str) -> str:
    """Return the URL so that it means the same in every working directory."""
    return url if url.startswith("s3://") else filesystem(url)[1]


def join(url: str, *parts: str) -> str:
    """Return the URL of something below another URL."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def exists(url: str) -> bool:
    """Tell whether a file or folder is there."""
    path = filesystem(url)[1]
    return attempt(url, "look for", lambda: filesystem(url)[0].get_file_info(path).type) != fs.FileType.NotFound


def read_bytes(url: str) -> bytes:
    """Return a whole file."""
    return attempt(url, "read", lambda: _read(url))


def _read(url: str) -> bytes:
    system, path = filesystem(url)
    with system.open_input_file(path) as file:
        data = file.read()
        if len(data) != file.size():
            raise IntegrityError(f"found {len(data)} bytes, expected {file.size()}")
        return data


def list_files(url: str, recursive: bool = False) -> list[fs.FileInfo]:
    """Return what lies under a folder, sorted by path; nothing when the folder is absent."""

    def listed() -> list[fs.FileInfo]:
        system, path = filesystem(url)
        return system.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=recursive))

    found = attempt(url, "list", listed)
    return sorted((info for info in found if not TEMPORARY.fullmatch(info.base_name)), key=lambda info: info.path)


def list_names(url: str) -> list[str]:
    """Return the sorted names directly under a folder; nothing when it is absent."""
    return sorted(info.base_name for info in list_files(url))


def delete(url: str) -> None:
    """Remove a file or a folder with all that is in it; absent is fine."""
    path = filesystem(url)[1]
    if "/" not in path.strip("/"):
        raise StorageError(f"{url}: found a bucket or a top-level folder to delete, expected something inside one")
    _remove(url, path)


def _remove(url: str, path: str) -> None:
    found = _step(url, fs.FileSystem.get_file_info, path)
    if found and found.type == fs.FileType.File:
        _step(url, fs.FileSystem.delete_file, path)
    elif found and found.type == fs.FileType.Directory:
        try:
            filesystem(url)[0].delete_dir(path)
        except OSError:
            # S3-compatible stores refuse the bulk request of newer SDKs, which carries no MD5.
            _remove_one_by_one(url, path)


def _remove_one_by_one(url: str, path: str) -> None:
    """Remove files and then the folders that held them; not several at once, as pyarrow makes sure of the parent after each."""
    inside = _step(url, fs.FileSystem.get_file_info, fs.FileSelector(path, recursive=True, allow_not_found=True)) or []
    for kind, remove in ((fs.FileType.File, fs.FileSystem.delete_file), (fs.FileType.Directory, fs.FileSystem.delete_dir)):
        for found in sorted((info.path for info in inside if info.type == kind), key=len, reverse=True):
            _step(url, remove, found)
    _step(url, fs.FileSystem.delete_dir, path)


def _step(url: str, act: Callable[..., Result], what: str | fs.FileSelector) -> Result | None:
    """Try one step of a removal until it is done: a store that refuses many requests never lets all of them through in a row."""
    try:
        return attempt(url, "delete", lambda: act(filesystem(url)[0], what))
    except NotFoundError:
        # An earlier try has done it, and only the rest of it failed.
        return None


def write_bytes(url: str, data: bytes | memoryview | pa.Buffer) -> None:
    """Write a file that appears whole or not at all, and lasts once this returns."""

    def write() -> None:
        system, path = filesystem(url, delayed_open=memoryview(data).nbytes < MULTIPART_BYTES)
        if isinstance(system, fs.LocalFileSystem):
            _write_local(Path(path), data)
            return
        with system.open_output_stream(path) as stream:
            stream.write(data)

    attempt(url, "write", write)


def _write_local(path: Path, data: bytes | memoryview | pa.Buffer) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

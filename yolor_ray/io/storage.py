"""Read, write, list and delete files at s3:// URLs and local paths.

A written file appears complete or not at all.
"""

import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from yolor_ray.errors import IntegrityError, NotFoundError, StorageError
from yolor_ray.io.filesystem import Result, call_with_retries, filesystem, path_of

MULTIPART_BYTES = 10 * 2**20
"""Size from which files are written without delayed open (bytes).

pyarrow's delayed open uploads such files in parts, and leaves an empty object if the store refuses to begin the upload.
"""
TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")
"""Names of unfinished local files; `list_files` leaves them out."""


def absolute(url: str) -> str:
    """Return an equal URL that is valid in every working directory."""
    return url if url.startswith("s3://") else path_of(url)


def join(url: str, *parts: str) -> str:
    """Return the URL of a file or folder below a folder."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def exists(url: str) -> bool:
    """Return True if a file or folder is at the URL."""
    return bool(_file_type(url) != fs.FileType.NotFound)


def is_file(url: str) -> bool:
    """Return True if a file is at the URL."""
    return bool(_file_type(url) == fs.FileType.File)


def _file_type(url: str) -> fs.FileType:
    def get_type() -> fs.FileType:
        system, path = filesystem(url)
        return system.get_file_info(path).type

    return call_with_retries(url, "look for", get_type)


def read_bytes(url: str, verify: Callable[[bytes], None] | None = None, expected_bytes: int | None = None) -> bytes:
    """Return the content of a file.

    Content for which `verify` raises IntegrityError is read again. A file of another size than `expected_bytes` is never read.
    """

    def read() -> bytes:
        system, path = filesystem(url)
        with system.open_input_file(path) as file:
            if expected_bytes is not None and file.size() != expected_bytes:
                raise IntegrityError(f"found {file.size()} bytes, expected {expected_bytes}")
            data: bytes = file.read()
            if len(data) != file.size():
                raise IntegrityError(f"found {len(data)} bytes, expected {file.size()}")
        if verify:
            verify(data)
        return data

    return call_with_retries(url, "read", read)


def read_start(url: str, size: int) -> bytes:
    """Return the first `size` bytes of a file, or all bytes of a smaller one."""

    def read() -> bytes:
        system, path = filesystem(url)
        with system.open_input_file(path) as file:
            data: bytes = file.read(size)
        return data

    return call_with_retries(url, "read", read)


def list_files(url: str, recursive: bool = False) -> list[fs.FileInfo]:
    """Return the files and folders below a folder, sorted by path; an empty list when the folder is absent."""

    def list_all() -> list[fs.FileInfo]:
        system, path = filesystem(url)
        return list(system.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=recursive)))

    try:
        infos = call_with_retries(url, "list", list_all)
    except NotFoundError:
        # pyarrow found no folder, and then the folder that another process had made in the meantime.
        return []
    return sorted((info for info in infos if not TEMPORARY.fullmatch(info.base_name)), key=lambda info: info.path)


def list_names(url: str) -> list[str]:
    """Return the sorted names directly below a folder; an empty list when the folder is absent."""
    return sorted(info.base_name for info in list_files(url))


def delete(url: str) -> None:
    """Delete a file, or a folder with its content; an absent one is no error."""
    path = path_of(url)
    if "/" not in path.strip("/"):
        raise StorageError(f"{url}: found a bucket or a top-level folder to delete, expected a file or folder inside one")
    _remove(url, path)


def _remove(url: str, path: str) -> None:
    info = _delete_step(url, fs.FileSystem.get_file_info, path)
    if info and info.type == fs.FileType.File:
        _delete_step(url, fs.FileSystem.delete_file, path)
    elif info and info.type == fs.FileType.Directory:
        try:
            filesystem(url)[0].delete_dir(path)
        except OSError:
            # S3-compatible stores refuse the bulk request of newer SDKs, which carries no MD5.
            _remove_one_by_one(url, path)


def _remove_one_by_one(url: str, path: str) -> None:
    """Delete files and then their folders, one at a time: pyarrow creates the parent folder again after each deletion."""
    infos = _delete_step(url, fs.FileSystem.get_file_info, fs.FileSelector(path, recursive=True, allow_not_found=True)) or []
    for file_type, remove in ((fs.FileType.File, fs.FileSystem.delete_file), (fs.FileType.Directory, fs.FileSystem.delete_dir)):
        for inner_path in sorted((info.path for info in infos if info.type == file_type), key=len, reverse=True):
            _delete_step(url, remove, inner_path)
    _delete_step(url, fs.FileSystem.delete_dir, path)


def _delete_step(url: str, operation: Callable[..., Result], target: str | fs.FileSelector) -> Result | None:
    """Run one step of a deletion with its own retries: a throttling store never accepts all steps in a row."""
    try:
        return call_with_retries(url, "delete", lambda: operation(filesystem(url)[0], target))
    except NotFoundError:
        # An earlier attempt deleted the target, and only the rest of that attempt failed.
        return None


def write_bytes(url: str, data: bytes | memoryview | pa.Buffer) -> None:
    """Write a file that appears complete or not at all. Local files are on disk (fsync) when this function returns."""

    def write() -> None:
        system, path = filesystem(url, delayed_open=memoryview(data).nbytes < MULTIPART_BYTES)
        if isinstance(system, fs.LocalFileSystem):
            _write_local(Path(path), data)
            return
        with system.open_output_stream(path) as stream:
            stream.write(data)

    call_with_retries(url, "write", write)


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

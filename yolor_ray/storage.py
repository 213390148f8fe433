"""Reach s3:// URLs and local folders through one pyarrow filesystem.

Files appear whole or not at all, and a published folder is complete exactly when its `manifest.json` is there.
Credentials, region and endpoint come from the `AWS_*` variables; no message ever repeats them.
"""

import functools
import hashlib
import json
import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import TypeVar
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from yolor_ray.errors import AbsentError, ConfigError, DamagedError, StorageError
from yolor_ray.redact import redacted
from yolor_ray.retries import Kind, Patience, advice, kind_of

MANIFEST = "manifest.json"
CONNECT_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 30.0
"""Silence after which a request is given up."""
ATTEMPTS_OF_SDK = 3
"""Few, as `attempt` tries again with more patience."""
MULTIPART_BYTES = 10 * 2**20
"""From here on pyarrow's delayed open uploads in parts, and leaves an empty object if the store refuses to begin: it must not delay."""
SHOWN_REASON = 200
TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")

Answer = TypeVar("Answer")
log = logging.getLogger(__name__)
_answered: set[str] = set()


def filesystem(url: str, delayed_open: bool = True) -> tuple[fs.FileSystem, str]:
    """Return the filesystem of a URL and the path on it, absolute if local; `delayed_open` is for writing less than MULTIPART_BYTES.

    Raises:
        ConfigError: the URL is neither `s3://bucket/key` nor a local path nor `file:///path`.

    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        if not url:
            raise ConfigError("URL: found an empty one, expected s3://bucket/key or a local path")
        return fs.LocalFileSystem(), str(Path(url).absolute())
    if scheme == "file":
        if not rest.startswith("/"):
            raise ConfigError(f"{url}: found a host in a file:// URL, expected file:///path")
        return fs.LocalFileSystem(), unquote(rest)
    if scheme != "s3":
        raise ConfigError(f"found a URL with scheme {scheme!r}, expected s3://bucket/key or a local path")
    bucket = rest.split("/", 1)[0]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]+", bucket):
        raise ConfigError("s3 URL: found no plain bucket name, expected s3://bucket/key without user, password or port")
    return _s3(*_endpoint(), bucket, delayed_open), rest.strip("/")


def _endpoint() -> tuple[str, str]:
    """Return the custom S3 endpoint (empty for AWS) and the region (empty when nobody says)."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ""
    if endpoint:
        place = urlsplit(endpoint)
        if place.username or place.password:
            raise ConfigError("AWS_ENDPOINT_URL: found user or password, expected them in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        if place.scheme not in ("http", "https") or not place.hostname:
            raise ConfigError("AWS_ENDPOINT_URL: found no http(s) URL, expected one such as https://host:9000")
        # Most S3-compatible stores do not know the trailing checksums that newer SDKs send by default.
        os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    return endpoint, region


@functools.lru_cache(maxsize=64)
def _s3(endpoint: str, region: str, bucket: str, delayed_open: bool) -> fs.S3FileSystem:
    common = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "request_timeout": REQUEST_TIMEOUT_S,
        "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS_OF_SDK),
        "allow_delayed_open": delayed_open,
    }
    if endpoint:
        place = urlsplit(endpoint)
        return fs.S3FileSystem(endpoint_override=place.netloc, scheme=place.scheme, region=region or "us-east-1", **common)
    if not region:
        region = attempt(f"s3://{bucket}", "find the region of", lambda: fs.resolve_s3_region(bucket))
    return fs.S3FileSystem(region=region, **common)


def _place(url: str) -> str:
    """Return scheme and bucket of a URL: what answers, or does not."""
    return "/".join(url.split("/", 3)[:3])


def vouch_for(url: str) -> None:
    """Count the bucket of a URL as one that answered before: another process of the job has been there."""
    _answered.add(_place(url))


def attempt(url: str, verb: str, action: Callable[[], Answer]) -> Answer:
    """Return what `action` returns; pyarrow's failures become StorageError "URL: cannot VERB it: …".

    Failures of S3 that may pass are tried again, for how long `retries` says; those of local files are not. `action` gets its
    filesystem anew each time, as renewed credentials come with another one.
    """
    patience = Patience(known=_place(url) in _answered)
    while True:
        try:
            answer = action()
        except FileNotFoundError as error:
            vouch_for(url)
            raise AbsentError(f"{url}: not found") from error
        except (OSError, pa.ArrowException, DamagedError) as error:
            kind = kind_of(error) if url.startswith("s3://") else Kind.LASTING
            wait_s = patience.wait_s(kind)
            reason = redacted(" ".join(str(error).split()))
            if wait_s is None and isinstance(error, DamagedError):
                raise DamagedError(f"{url}: {reason}") from None
            if wait_s is None:
                raise StorageError(f"{url}: cannot {verb} it{patience.told()}: {reason}{advice(error)}") from None
            if kind in (Kind.EXPIRED, Kind.REFUSED):
                _s3.cache_clear()
            shown = "event=storage_retry url=%s attempt=%d wait_s=%.1f reason=%s"
            log.warning(shown, url, patience.failures.total(), wait_s, reason[:SHOWN_REASON])
            time.sleep(wait_s)
        else:
            vouch_for(url)
            return answer


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
            raise DamagedError(f"found {len(data)} bytes, expected {file.size()}")
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


def _step(url: str, act: Callable[..., Answer], what: str | fs.FileSelector) -> Answer | None:
    """Try one step of a removal until it is done: a store that refuses many requests never lets all of them through in a row."""
    try:
        return attempt(url, "delete", lambda: act(filesystem(url)[0], what))
    except AbsentError:
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
        raise DamagedError(f"{url}: found {', '.join(sorted(listed))} in {MANIFEST}, expected also {', '.join(absent)}")
    return {name: _verified(join(url, name), listed[name]) for name in (listed if names is None else names)}


def _manifest(url: str) -> dict[str, tuple[int, str]]:
    try:
        files = json.loads(read_bytes(url))["files"]
        return {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedError(f'{url}: found no manifest, expected {{"files": {{name: {{"bytes", "sha256"}}}}}}') from error


def _verified(url: str, expected: tuple[int, str]) -> bytes:
    def read() -> bytes:
        data = _read(url)
        found = len(data), hashlib.sha256(data).hexdigest()
        if found != expected:
            raise DamagedError(f"found {found[0]} bytes with SHA-256 {found[1]}, expected {expected[0]} and {expected[1]}")
        return data

    try:
        return attempt(url, "read", read)
    except AbsentError as error:
        raise DamagedError(f"{url}: not found, expected it as {MANIFEST} lists it") from error

"""TODO module docstring."""

import functools
import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from yolor_ray.errors import ConfigError, IntegrityError, NotFoundError, StorageError
from yolor_ray.io.redact import redacted
from yolor_ray.io.retry import FailureKind, RetryBudget, advice, failure_kind

CONNECT_TIMEOUT_S = 5.0


REQUEST_TIMEOUT_S = 30.0
"""Silence after which a request is given up."""


SDK_ATTEMPTS = 3
"""Few, as `attempt` tries again with more patience."""


LOGGED_REASON_LENGTH = 200


Result = TypeVar("Result")


log = logging.getLogger(__name__)


_reachable_buckets: set[str] = set()


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
        "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=SDK_ATTEMPTS),
        "allow_delayed_open": delayed_open,
    }
    if endpoint:
        place = urlsplit(endpoint)
        return fs.S3FileSystem(endpoint_override=place.netloc, scheme=place.scheme, region=region or "us-east-1", **common)
    if not region:
        region = attempt(f"s3://{bucket}", "find the region of", lambda: fs.resolve_s3_region(bucket))
    return fs.S3FileSystem(region=region, **common)


def _bucket_of(url: str) -> str:
    """Return scheme and bucket of a URL: what answers, or does not."""
    return "/".join(url.split("/", 3)[:3])


def mark_reachable(url: str) -> None:
    """Count the bucket of a URL as one that answered before: another process of the job has been there."""
    _reachable_buckets.add(_bucket_of(url))


def attempt(url: str, verb: str, action: Callable[[], Result]) -> Result:
    """Return what `action` returns; pyarrow's failures become StorageError "URL: cannot VERB it: …".

    Failures of S3 that may pass are tried again, for how long `retries` says; those of local files are not. `action` gets its
    filesystem anew each time, as renewed credentials come with another one.
    """
    patience = RetryBudget(reachable=_bucket_of(url) in _reachable_buckets)
    while True:
        try:
            answer = action()
        except FileNotFoundError as error:
            mark_reachable(url)
            raise NotFoundError(f"{url}: not found") from error
        except (OSError, pa.ArrowException, IntegrityError) as error:
            kind = failure_kind(error) if url.startswith("s3://") else FailureKind.LASTING
            wait_s = patience.wait_s(kind)
            reason = redacted(" ".join(str(error).split()))
            if wait_s is None and isinstance(error, IntegrityError):
                raise IntegrityError(f"{url}: {reason}") from None
            if wait_s is None:
                raise StorageError(f"{url}: cannot {verb} it{patience.summary()}: {reason}{advice(error)}") from None
            if kind in (FailureKind.EXPIRED, FailureKind.REFUSED):
                _s3.cache_clear()
            shown = "event=storage_retry url=%s attempt=%d wait_s=%.1f reason=%s"
            log.warning(shown, url, patience.failures.total(), wait_s, reason[:LOGGED_REASON_LENGTH])
            time.sleep(wait_s)
        else:
            mark_reachable(url)
            return answer

"""Open the pyarrow file system of a URL, and retry operations on S3.

A URL is `s3://bucket/key`, a local path or `file:///path`. Credentials, region and endpoint come from the `AWS_*` variables.
No message repeats credentials.
"""

import dataclasses
import functools
import logging
import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from yolor_ray.errors import ConfigError, IntegrityError, NotFoundError, StorageError
from yolor_ray.io.redact import redact
from yolor_ray.io.retry import FailureKind, RetryBudget, advice, failure_kind

CONNECT_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 30.0
"""Silence after which the SDK gives up a request (s)."""
SDK_ATTEMPTS = 3
"""Attempts of the AWS SDK per request; few, because `call_with_retries` has the larger budget."""
LOGGED_REASON_LENGTH = 200
"""Longest failure text in a log line (characters)."""
UNUSED_PREFIX = ".yolor-ray-check"
"""Prefix that `check_reachable` lists. No object has the prefix, so that the answer is short."""

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


def filesystem(url: str, delayed_open: bool = True) -> tuple[fs.FileSystem, str]:
    """Return the file system of a URL and the path on the file system; see `path_of`.

    `delayed_open` is for writing less than MULTIPART_BYTES.

    Raises:
        ConfigError: the URL or AWS_ENDPOINT_URL is malformed.

    """
    path = path_of(url)
    if not url.startswith("s3://"):
        return fs.LocalFileSystem(), path
    return _s3(*_endpoint(), path.partition("/")[0], delayed_open), path


def path_of(url: str) -> str:
    """Return the path of a URL on its file system: an absolute path, or `bucket/key` on S3.

    Raises:
        ConfigError: the URL is neither `s3://bucket/key` nor a local path nor `file:///path`.

    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        if not url:
            raise ConfigError("URL: found an empty one, expected s3://bucket/key or a local path")
        return str(Path(url).absolute())
    if scheme == "file":
        if not rest.startswith("/"):
            raise ConfigError(f"{url}: found a host in a file:// URL, expected file:///path")
        return unquote(rest)
    if scheme != "s3":
        raise ConfigError(f"found a URL with scheme {scheme!r}, expected s3://bucket/key or a local path")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]+", rest.partition("/")[0]):
        raise ConfigError("s3 URL: found no plain bucket name, expected s3://bucket/key without user, password or port")
    return rest.strip("/")


def _endpoint() -> tuple[str, str]:
    """Return the custom S3 endpoint (empty for AWS) and the region (empty when no variable sets the region)."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ""
    if endpoint:
        address = urlsplit(endpoint)
        if address.username or address.password:
            raise ConfigError("AWS_ENDPOINT_URL: found user or password, expected them in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ConfigError("AWS_ENDPOINT_URL: found no http(s) URL, expected one such as https://host:9000")
        # Most S3-compatible stores do not support the trailing checksums that newer SDKs send by default.
        os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    return endpoint, region


@functools.lru_cache(maxsize=64)
def _s3(endpoint: str, region: str, bucket: str, delayed_open: bool) -> fs.S3FileSystem:
    options = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "request_timeout": REQUEST_TIMEOUT_S,
        "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=SDK_ATTEMPTS),
        "allow_delayed_open": delayed_open,
    }
    if endpoint:
        address = urlsplit(endpoint)
        return fs.S3FileSystem(endpoint_override=address.netloc, scheme=address.scheme, region=region or "us-east-1", **options)
    return fs.S3FileSystem(region=region or fs.resolve_s3_region(bucket), **options)


def call_with_retries(url: str, verb: str, action: Callable[[], Result], budget: RetryBudget | None = None) -> Result:
    """Call `action` until it succeeds or the retry budget is spent, and return its result.

    Only failures of S3 are retried. `action` opens its file system anew in each attempt, because renewed credentials come with
    a new file system.

    Raises:
        NotFoundError: nothing is at the URL.
        IntegrityError: `action` raised IntegrityError in every attempt.
        StorageError: "URL: cannot VERB it: …" for every other failure of pyarrow.

    """
    budget = budget or RetryBudget()
    while True:
        try:
            return action()
        except FileNotFoundError as error:
            raise NotFoundError(f"{url}: not found") from error
        except (OSError, pa.ArrowException, IntegrityError) as error:
            kind = failure_kind(error) if url.startswith("s3://") else FailureKind.PERMANENT
            wait_s = budget.wait_s(kind)
            reason = redact(" ".join(str(error).split()))
            if wait_s is None and isinstance(error, IntegrityError):
                raise IntegrityError(f"{url}: {reason}") from None
            if wait_s is None:
                raise StorageError(f"{url}: cannot {verb} it{budget.summary()}: {reason}{advice(error)}") from None
            if kind in (FailureKind.EXPIRED, FailureKind.REFUSED):
                _s3.cache_clear()
            logger.warning(
                "event=storage_retry url=%s attempt=%d wait_s=%.1f reason='%s'",
                *(url, budget.failures.total(), wait_s, reason[:LOGGED_REASON_LENGTH]),
            )
            time.sleep(wait_s)


def check_reachable(urls: Iterable[str]) -> None:
    """Send one request to the bucket of each s3:// URL, with the short budget of a first contact.

    Missing permission to list a bucket is no failure: reading may be permitted.

    Raises:
        StorageError: an endpoint does not answer, a bucket does not exist, or a store refuses the credentials.

    """
    for bucket_url in sorted({"/".join(url.split("/", 3)[:3]) for url in urls if url.startswith("s3://")}):
        call_with_retries(bucket_url, "reach", functools.partial(_list_unused_prefix, bucket_url), RetryBudget(first_contact=True))


def _list_unused_prefix(bucket_url: str) -> None:
    """List a prefix without objects: unlike HEAD's, the answer has a body, which tells refused credentials from missing permission."""
    system, path = filesystem(f"{bucket_url}/{UNUSED_PREFIX}")
    try:
        system.get_file_info(fs.FileSelector(path))
    except FileNotFoundError:
        return
    except OSError as error:
        if failure_kind(error) is not FailureKind.REFUSED:
            raise


def urls_in(config: Any) -> list[str]:
    """Return the s3:// URLs in the text fields of a configuration and of its nested configurations, in the order of the fields.

    Lists of URLs that are separated by commas are split.
    """
    if isinstance(config, str):
        return [url.strip() for url in re.findall("s3://[^,]+", config)]
    if isinstance(config, tuple):
        return [url for item in config for url in urls_in(item)]
    if dataclasses.is_dataclass(config):
        return [url for field in dataclasses.fields(config) for url in urls_in(getattr(config, field.name))]
    return []

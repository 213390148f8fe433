"""Classify the failures of S3, and decide for how long and how often an operation is retried.

pyarrow gives the cause of a failure only in the text of its exceptions. Waits grow exponentially and have random jitter, so
that workers which a store refused together do not return together.
"""

import random
import re
import time
from collections import Counter
from enum import Enum

import pyarrow as pa

from yolor_ray.errors import IntegrityError

BUDGET_S = 300.0
"""Longest time of retries after transient failures, since the first failure (s)."""
NEW_BUCKET_BUDGET_S = 60.0
"""The same for the first contact of a job with a bucket, whose endpoint may be mistyped (s)."""
FIRST_WAIT_S = 0.5
WAIT_CAP_S = 10.0
REFUSED_ATTEMPTS = 4
"""Attempts of an operation whose credentials are refused or expired."""
READ_ATTEMPTS = 3
"""Attempts to read content that does not verify: the transfer may have damaged the content."""


class FailureKind(Enum):
    """Kind of a failure of S3, which decides about retries."""

    TRANSIENT = "transient"
    """The store is down or throttles: retried until the time budget is spent."""
    REFUSED = "refused"
    """Access denied: retried a few times, as throttling may look the same."""
    EXPIRED = "expired"
    """Credentials expired or unknown: retried a few times with credentials that are read anew."""
    DAMAGED = "damaged"
    """Content does not verify: read again."""
    PERMANENT = "permanent"
    """Not retried."""


_CERTIFICATE = re.compile(r"curlCode: (58|60|77),")
# 501 and 505 mean that the store lacks the operation, now and later.
_TRANSIENT = re.compile(
    "NETWORK_CONNECTION|SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|THROTTLING|REQUEST_TIMEOUT|NO_SUCH_UPLOAD"
    r"|UNKNOWN \(HTTP status (408|409|429|5(?!01|05)\d\d)\)|ExceptionName: (BadDigest|IncompleteBody|RequestTimeout)"
)
# Without a body there is no code: neither for HEAD nor, as pyarrow streams the body, for GET.
_BARE_400 = re.compile(r"UNKNOWN \(HTTP status 400\) during \w+ operation: *(No response body\.)?\s*$")
_EXPIRED = re.compile(
    "INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|UNRECOGNIZED_CLIENT|REQUEST_EXPIRED"
    "|ExceptionName: (ExpiredToken|TokenRefreshRequired|InvalidToken)"
)


def failure_kind(error: Exception) -> FailureKind:
    """Classify a failure of an operation on S3."""
    # Before "AWS Error" stands the object's key, which may contain any text.
    answer = str(error).partition("AWS Error ")[2]
    if not answer:
        from_disk = isinstance(error, OSError) and error.errno is not None
        unverified = isinstance(error, IntegrityError | OSError | pa.ArrowInvalid) and not from_disk
        return FailureKind.DAMAGED if unverified else FailureKind.PERMANENT
    if _EXPIRED.search(answer) or _BARE_400.match(answer):
        return FailureKind.EXPIRED
    if answer.startswith("ACCESS_DENIED"):
        return FailureKind.REFUSED
    return FailureKind.TRANSIENT if _TRANSIENT.search(answer) and not _CERTIFICATE.search(answer) else FailureKind.PERMANENT


def advice(error: Exception) -> str:
    """Return advice to the caller, to be appended to the message of a failure that remained; empty when there is none."""
    if failure_kind(error) is not FailureKind.EXPIRED:
        return ""
    doubt = " (or the region is wrong: S3 gave no reason with status 400)" if _BARE_400.search(str(error)) else ""
    return f"; the credentials have expired or are unknown{doubt}: renew them and run the same command again to continue"


class RetryBudget:
    """Retry budget of one operation; `first_contact` is for `check_reachable`: less time, and no retry after a refusal."""

    def __init__(self, first_contact: bool = False) -> None:
        self.failures: Counter[FailureKind] = Counter()
        self.started_s = time.monotonic()
        self._first_failure_s: float | None = None
        self._budget_s = NEW_BUCKET_BUDGET_S if first_contact else BUDGET_S
        refused = 1 if first_contact else REFUSED_ATTEMPTS
        self._attempts = {
            FailureKind.REFUSED: refused,
            FailureKind.EXPIRED: refused,
            FailureKind.DAMAGED: READ_ATTEMPTS,
            FailureKind.PERMANENT: 1,
        }

    def wait_s(self, kind: FailureKind) -> float | None:
        """Record a failure and return the seconds to wait before the next attempt; None when the budget is spent."""
        now = time.monotonic()
        # Counted from the first failure, so that an operation that takes longer than the budget is attempted twice, too.
        self._first_failure_s = now if self._first_failure_s is None else self._first_failure_s
        self.failures[kind] += 1
        wait_s = random.uniform(0, min(WAIT_CAP_S, FIRST_WAIT_S * 2 ** (self.failures.total() - 1)))
        if kind is FailureKind.TRANSIENT:
            return wait_s if now - self._first_failure_s + wait_s < self._budget_s else None
        return wait_s if self.failures[kind] < self._attempts[kind] else None

    def summary(self) -> str:
        """Return the number and duration of the attempts for an error message; empty after a single attempt."""
        attempts = self.failures.total()
        return f" after {attempts} attempts in {time.monotonic() - self.started_s:.0f} s" if attempts > 1 else ""

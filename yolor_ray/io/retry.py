"""Tell which failures of S3 pass, how often to try again, and how long to wait in between.

What pyarrow raises carries its cause only in its text. Waits grow and are drawn at random, so that workers which a store
refused together do not come back together.
"""

import random
import re
import time
from collections import Counter
from enum import Enum

import pyarrow as pa

from yolor_ray.errors import IntegrityError

BUDGET_S = 300.0
"""Time since the first failure for which a bucket that answered before is waited for."""
NEW_BUCKET_BUDGET_S = 60.0
"""The same for one that never did: its endpoint may be mistyped."""
FIRST_WAIT_S = 0.5
WAIT_CAP_S = 10.0
FEW_ATTEMPTS = 4
READ_ATTEMPTS = 3
"""Of content that does not verify: the transfer may have damaged it."""


class FailureKind(Enum):
    """What a failure asks for."""

    PASSING = "wait until the store is back"
    REFUSED = "a few tries where it was allowed before, as throttling may look like this; none at first"
    EXPIRED = "a few tries with credentials read afresh where they were taken before; none at first"
    DAMAGED = "read again"
    LASTING = "stop"


_CERTIFICATE = re.compile(r"curlCode: (58|60|77),")
# 501 and 505 tell what the store cannot do, now or later.
_PASSING = re.compile(
    "NETWORK_CONNECTION|SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|THROTTLING|REQUEST_TIMEOUT|NO_SUCH_UPLOAD"
    r"|UNKNOWN \(HTTP status (408|409|429|5(?!01|05)\d\d)\)|ExceptionName: (BadDigest|IncompleteBody|RequestTimeout)"
)
# Without a body there is no code: neither for HEAD nor, as pyarrow streams it, for GET.
_SAYS_400_ONLY = re.compile(r"UNKNOWN \(HTTP status 400\) during \w+ operation: *(No response body\.)?\s*$")
_EXPIRED = re.compile(
    "INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|UNRECOGNIZED_CLIENT|REQUEST_EXPIRED"
    "|ExceptionName: (ExpiredToken|TokenRefreshRequired|InvalidToken)"
)


def failure_kind(error: Exception) -> FailureKind:
    """Return what a failure of an operation on S3 asks for."""
    # Before these words stands the object's key, which may be anything.
    said = str(error).partition("AWS Error ")[2]
    if not said:
        from_disk = isinstance(error, OSError) and error.errno is not None
        return (
            FailureKind.DAMAGED if isinstance(error, IntegrityError | OSError | pa.ArrowInvalid) and not from_disk else FailureKind.LASTING
        )
    if _EXPIRED.search(said) or _SAYS_400_ONLY.match(said):
        return FailureKind.EXPIRED
    if said.startswith("ACCESS_DENIED"):
        return FailureKind.REFUSED
    return FailureKind.PASSING if _PASSING.search(said) and not _CERTIFICATE.search(said) else FailureKind.LASTING


def advice(error: Exception) -> str:
    """Return what the caller can do about a failure that stayed, to be put after its message."""
    if failure_kind(error) is not FailureKind.EXPIRED:
        return ""
    unsure = " (or the region is wrong: S3 said no more than 400)" if _SAYS_400_ONLY.search(str(error)) else ""
    return f"; the credentials have expired or are unknown{unsure}: renew them and give the same command again, it goes on"


class RetryBudget:
    """Decide for one operation whether and when it is tried again."""

    def __init__(self, reachable: bool) -> None:
        self.reachable = reachable
        """Whether the bucket answered before, in this process or another of the job."""
        self.failures: Counter[FailureKind] = Counter()
        self.started_s = time.monotonic()
        self._failed_s: float | None = None

    def wait_s(self, kind: FailureKind) -> float | None:
        """Note a failure and return how many seconds to wait before the next try; None when it is enough."""
        now = time.monotonic()
        # Since the first failure, so that what takes longer than the budget by itself is tried twice too.
        self._failed_s = now if self._failed_s is None else self._failed_s
        self.failures[kind] += 1
        wait_s = random.uniform(0, min(WAIT_CAP_S, FIRST_WAIT_S * 2 ** (self.failures.total() - 1)))
        if kind is FailureKind.PASSING:
            budget_s = BUDGET_S if self.reachable else NEW_BUCKET_BUDGET_S
            return wait_s if now - self._failed_s + wait_s < budget_s else None
        few = FEW_ATTEMPTS if self.reachable else 1
        allowed = {FailureKind.REFUSED: few, FailureKind.EXPIRED: few, FailureKind.DAMAGED: READ_ATTEMPTS, FailureKind.LASTING: 1}[kind]
        return wait_s if self.failures[kind] < allowed else None

    def summary(self) -> str:
        """Return how often and how long it was tried, for the message; nothing after a single try."""
        tries = self.failures.total()
        return f" after {tries} attempts in {time.monotonic() - self.started_s:.0f} s" if tries > 1 else ""

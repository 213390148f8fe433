"""API keys of clients: a file of hashed keys with names and limits, read again while the service runs.

A line is `NAME sha256:HEX [requests_per_s=NUMBER] [megapixels_per_s=NUMBER]`; lines that begin with `#` are comments. The file holds no
key: keys are random, so that their plain SHA-256 cannot be turned back.
"""

import hashlib
import hmac
import logging
import math
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import Depends
from starlette.requests import Request

from yolor_ray.config import ServeConfig
from yolor_ray.errors import ConfigError, UserError
from yolor_ray.io import storage
from yolor_ray.serve.http.errors import ApiError

RELOAD_S = 5.0
"""Seconds between two readings of the file."""
LINE = "NAME sha256:<64 hexadecimal digits> [requests_per_s=NUMBER] [megapixels_per_s=NUMBER]"
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
DIGEST = re.compile(r"sha256:([0-9a-f]{64})", re.IGNORECASE)
LIMITS = ("requests_per_s", "megapixels_per_s")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ApiKey:
    """Key of one client, without the key itself."""

    name: str
    digest: bytes
    """SHA-256 of the key."""
    requests_per_s: float = math.inf
    megapixels_per_s: float = math.inf


class Allowance:
    """Amount per second that one client may use; an unused second is saved, and one use may overdraw what is saved."""

    def __init__(self, per_s: float, clock: Callable[[], float], least: float = 0.0) -> None:
        """Save the allowance of a second; `least` must be saved for a use: a request is never a part of one."""
        self.per_s, self._least = per_s, least
        self._clock = clock
        self._saved, self._updated = max(per_s, 1.0), clock()
        self._lock = threading.Lock()

    def wait_s(self, amount: float) -> float:
        """Use an amount and return 0, or use nothing and return the seconds until enough is saved again."""
        if math.isinf(self.per_s):
            return 0.0
        with self._lock:
            now = self._clock()
            self._saved = min(self._saved + (now - self._updated) * self.per_s, max(self.per_s, 1.0))
            self._updated = now
            if self._saved < self._least or self._saved <= 0:
                return max((self._least - self._saved) / self.per_s, 1e-3)
            self._saved -= amount
            return 0.0


def parse_keys(text: str, url: str) -> tuple[ApiKey, ...]:
    """Return the keys of a file; raises ConfigError, which never has the text of a line: a line may hold a key by mistake."""
    keys: list[ApiKey] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        key = _parse_line(words, f"{url}, line {number}")
        for attribute in ("name", "digest"):
            if getattr(key, attribute) in (getattr(other, attribute) for other in keys):
                raise ConfigError(f"{url}, line {number}: found a {attribute} of an earlier line, expected another")
        keys.append(key)
    return tuple(keys)


def _parse_line(words: list[str], place: str) -> ApiKey:
    name, digest = words[0], DIGEST.fullmatch(words[1]) if len(words) > 1 else None
    if not NAME.fullmatch(name) or digest is None:
        raise ConfigError(f"{place}: expected {LINE}")
    limits: dict[str, float] = {}
    for word in words[2:]:
        limit, _, number = word.partition("=")
        if limit not in LIMITS or limit in limits or not _is_positive(number):
            raise ConfigError(f"{place}, key {name}: expected limits as in {LINE}, each once and more than 0")
        limits[limit] = float(number)
    return ApiKey(name, bytes.fromhex(digest[1]), **limits)


def _is_positive(number: str) -> bool:
    try:
        return 0 < float(number) < math.inf
    except ValueError:
        return False


class ApiKeys:
    """Keys of a file and the allowances of their clients in this replica."""

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the file; raises ConfigError or StorageError."""
        self._url, self._clock = url, clock
        self._text = storage.read_bytes(url)
        self._keys = parse_keys(_decode(self._text, url), url)
        if not self._keys:
            raise ConfigError(f"api_keys: found no key in {url}, expected lines {LINE}")
        self._allowances: dict[tuple[str, str, float], Allowance] = {}

    def keep_fresh(self) -> None:
        """Read the file again every RELOAD_S seconds, in a thread that ends with the process."""

        def reload_forever() -> None:
            while True:
                time.sleep(RELOAD_S)
                self.reload()

        threading.Thread(target=reload_forever, name="api-keys", daemon=True).start()

    def reload(self) -> None:
        """Take the keys of a changed file; keep the present ones, and say so, where the file cannot be read."""
        try:
            text = storage.read_bytes(self._url)
            if text == self._text:
                return
            keys = parse_keys(_decode(text, self._url), self._url)
        except UserError as error:
            logger.warning("event=api_keys_unreadable file=%s next='the former keys stay' error='%s'", self._url, error)
            return
        self._text, self._keys = text, keys
        logger.info("event=api_keys_read file=%s keys=%d", self._url, len(keys))

    def admit(self, request: Request) -> ApiKey:
        """Return the key of a request, and count the request; raises ApiError 401, 403 or 429."""
        presented = _presented_key(request)
        if not presented:
            expected = "Authorization: Bearer KEY, or X-API-Key: KEY"
            raise ApiError("missing_key", f"found no API key, expected the header {expected}", {"WWW-Authenticate": "Bearer"})
        key = self._find(presented)
        if key is None:
            raise ApiError("wrong_key", "found an API key that is unknown here, expected one of this service")
        self._use(key, "requests_per_s", 1.0)
        return key

    def charge_pixels(self, key: ApiKey, pixels: int) -> None:
        """Count the pixels of an image; raises ApiError 429."""
        self._use(key, "megapixels_per_s", pixels / 1e6)

    def _find(self, presented: str) -> ApiKey | None:
        """Return the key with this text, in a time that depends on neither the text nor the key."""
        digest = hashlib.sha256(presented.encode("utf-8", "surrogateescape")).digest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def _use(self, key: ApiKey, limit: str, amount: float) -> None:
        per_s, least = getattr(key, limit), 1.0 if limit == "requests_per_s" else 0.0
        allowance = self._allowances.setdefault((key.name, limit, per_s), Allowance(per_s, self._clock, least))
        wait_s = allowance.wait_s(amount)
        if wait_s > 0:
            retry_s = math.ceil(wait_s)
            message = f"the key {key.name} has used its {limit}={per_s:g}; try again in {retry_s} s"
            raise ApiError("rate_limited", message, {"Retry-After": str(retry_s)})


async def require_key(request: Request) -> None:
    """Admit a request by its API key, where the service has keys; raises ApiError."""
    settings: ServeConfig = request.app.state.service.settings
    keys: ApiKeys | None = request.app.state.service.keys
    if keys is not None and not (settings.open_metrics and request.url.path.endswith("/metrics")):
        request.state.api_key = keys.admit(request)


KEYED = [Depends(require_key)]
"""Dependencies of the routes that need a key. Probes and pages need none."""


def _decode(text: bytes, url: str) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{url}: found bytes that are not UTF-8, expected lines {LINE}") from None


def _presented_key(request: Request) -> str:
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "").strip()

"""Calls of a service as generators of steps: work for a thread, requests to send, and pauses between two attempts.

The clients of `client.py` perform the steps, one with threads and one with asyncio.
"""

import email.utils
import functools
import io
import os
import time
import urllib.parse
import uuid
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import httpx
import numpy as np
from PIL import Image

from yolor_ray.config.serve import MAX_IMAGES, TIMEOUT_HEADER
from yolor_ray.data.images.decode import pixels_of
from yolor_ray.errors import BusyError, RefusedError, ServiceError, UnreachableError
from yolor_ray.io import storage
from yolor_ray.io.redact import redact

BATCH_BYTES = 16 * 10**6
"""Most bytes of the images of one request: a service refuses bodies of over 20 MB, unless it was started with another limit."""
BUSY = (429, 503)
"""HTTP statuses after which the same request is sent again."""
CUT = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)
"""Errors of a kept connection that the service closed just as the request was sent: the request is sent again, once."""
RETRY_AFTER_S = 1.0
"""Pause after an answer without the header Retry-After."""

ClientImage: TypeAlias = str | os.PathLike[str] | bytes | np.ndarray | Image.Image
"""A path or an `s3://` URL, the bytes of an image file, (H, W, 3) uint8 RGB, (H, W) uint8 grey, (H, W, 4) uint8 RGBA, or a PIL image."""
Query: TypeAlias = str | float | bool | Sequence[str]
Json: TypeAlias = dict[str, Any]
Value = TypeVar("Value")


@dataclass(frozen=True)
class Pause:
    """Step of a call: wait before the next attempt."""

    seconds: float


Step: TypeAlias = httpx.Request | Pause | Callable[[], Any]
Call: TypeAlias = Generator[Step, Any, Value]


@dataclass(frozen=True)
class CallResult(Generic[Value]):
    """End of a call."""

    value: Value


@dataclass
class Calls:
    """The calls of a service, as steps: a request is answered by its response, or by the error that came instead."""

    build: Callable[..., httpx.Request]
    timeout_s: float
    max_images: int = MAX_IMAGES
    """Most images of one request, until a service with a shorter queue refuses so many."""

    def detect(self, image: ClientImage, model: str, query: dict[str, Query]) -> Call[Json]:
        """Return the steps of `Client.detect`."""
        _, data = yield functools.partial(_read, image, 0)
        return (yield from self._ask("POST", _path(model, "/detect"), params=query, content=data, media_type="application/octet-stream"))

    def detect_batch(self, images: Iterable[ClientImage], model: str, query: dict[str, Query]) -> Call[list[Json]]:
        """Return the steps of `Client.detect_batch`."""
        results: list[Json] = []
        files: list[tuple[str, bytes]] = []
        for index, image in enumerate(images):
            file = yield functools.partial(_read, image, index)
            if files and (len(files) >= self.max_images or sum(len(data) for _, data in [*files, file]) > BATCH_BYTES):
                results += yield from self._ask_batch(files, model, query)
                files = []
            files.append(file)
        if files:
            results += yield from self._ask_batch(files, model, query)
        return results

    def model(self, model: str) -> Call[Json]:
        """Return the steps of `Client.model`."""
        return self._ask("GET", _path(model, "") if model else "/v1/model")

    def models(self) -> Call[list[Json]]:
        """Return the steps of `Client.models`."""
        answer = yield from self._ask("GET", "/v1/models")
        listed: list[Json] = answer["models"]
        return listed

    def ready(self) -> Call[bool]:
        """Return the steps of `Client.ready`."""
        reply = yield self.build("GET", "/readyz", timeout=self.timeout_s)
        return isinstance(reply, httpx.Response) and reply.is_success

    def _ask_batch(self, files: list[tuple[str, bytes]], model: str, query: dict[str, Query]) -> Call[list[Json]]:
        try:
            answer = yield from self._ask("POST", _path(model, "/detect/batch"), params=query, files=[("file", file) for file in files])
        except RefusedError as error:
            if error.code != "too_many_images":
                raise
            # The queue is that of all models of the service.
            card = yield from self.model("")
            if not 1 <= card["max_images"] < len(files):
                raise
            self.max_images = card["max_images"]
            return (yield from self._ask_parts(files, model, query))
        results: list[Json] = answer["results"]
        return results

    def _ask_parts(self, files: list[tuple[str, bytes]], model: str, query: dict[str, Query]) -> Call[list[Json]]:
        results: list[Json] = []
        count = self.max_images
        for start in range(0, len(files), count):
            results += yield from self._ask_batch(files[start : start + count], model, query)
        return results

    def _ask(self, method: str, path: str, media_type: str = "", **content: Any) -> Call[Json]:
        """Send a request until the service is not busy, or until another attempt would begin after the time limit."""
        request_id = uuid.uuid4().hex
        headers = {"X-Request-ID": request_id} | ({"Content-Type": media_type} if media_type else {})
        deadline = time.monotonic() + self.timeout_s
        was_cut = False
        while True:
            # A pause may end a little late, and a time limit of 0 would be none.
            timeout_s = max(deadline - time.monotonic(), 0.01)
            deadline_ms = {TIMEOUT_HEADER: str(min(int(timeout_s * 1e3), 999_999_999))}
            request = self.build(method, path, headers=headers | deadline_ms, timeout=timeout_s, **content)
            reply = yield request
            if isinstance(reply, CUT) and not was_cut:
                was_cut = True
                continue
            if not isinstance(reply, httpx.Response):
                fault = f"{redact(str(request.url.copy_with(query=None)))}: {type(reply).__name__} {reply}"
                raise UnreachableError(fault.strip(), "unreachable", 0, request_id)
            if reply.is_success:
                return _json(reply, request_id)
            pause_s = _retry_after_s(reply)
            if reply.status_code not in BUSY or time.monotonic() + pause_s >= deadline:
                raise _error_of(reply, request_id)
            yield Pause(pause_s)


def next_step(call: Call[Value], outcome: Any) -> Step | CallResult[Value]:
    """Tell a call the outcome of its last step, and return its next step, or its result."""
    try:
        return call.send(outcome)
    except StopIteration as end:
        return CallResult(end.value)


def _path(model: str, path: str) -> str:
    """Return the path of a route of a model; an empty name stands for the default model."""
    return f"/v1/models/{urllib.parse.quote(model, safe='')}{path}" if model else f"/v1{path}"


def _read(image: ClientImage, index: int) -> tuple[str, bytes]:
    """Return name and encoded bytes of an image."""
    if isinstance(image, bytes):
        return f"image-{index}", image
    if isinstance(image, np.ndarray | Image.Image):
        buffer = io.BytesIO()
        # PNG changes no pixel. The lowest level takes a fraction of the time, and a little more space.
        Image.fromarray(pixels_of(image)).save(buffer, "PNG", compress_level=1)
        return f"image-{index}", buffer.getvalue()
    url = os.fspath(image)
    return url.rpartition("/")[2], storage.read_bytes(url)


def _json(reply: httpx.Response, request_id: str) -> Json:
    try:
        answer = reply.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise ServiceError(f"found {reply.text[:80]!r}, expected JSON of a service", "bad_answer", reply.status_code, request_id)
    return answer


def _retry_after_s(reply: httpx.Response) -> float:
    """Return the pause that a busy service asks for: seconds, or a date."""
    text = reply.headers.get("Retry-After", "")
    if text.isdecimal():
        return float(text[:10])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return RETRY_AFTER_S


def _error_of(reply: httpx.Response, request_id: str) -> ServiceError:
    """Return the error of an answer, which a proxy may have given in another form than the service."""
    try:
        body = reply.json()
    except ValueError:
        body = None
    fields = body if isinstance(body, dict) else {}
    status = reply.status_code
    kind = BusyError if status in BUSY else RefusedError if 400 <= status < 500 else ServiceError
    message, code = str(fields.get("message", reply.text[:200])), str(fields.get("code", f"status_{status}"))
    return kind(message, code, status, str(fields.get("request_id") or request_id))

"""Clients of a service that `yolor-ray serve` runs: `Client`, and `AsyncClient` for asyncio.

A call is a generator of steps, which both clients perform: work for a thread, requests to send, and pauses between two attempts.
This module needs neither torch nor Ray.
"""

import asyncio
import email.utils
import functools
import io
import os
import time
import uuid
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

import httpx
import numpy as np
from PIL import Image

from yolor_ray.data.images.decode import pixels_of
from yolor_ray.errors import BusyError, RefusedError, ServiceError, UnreachableError
from yolor_ray.io import storage
from yolor_ray.io.redact import redact

BATCH_IMAGES = 32
"""Most images of one request."""
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
Query: TypeAlias = str | float | bool
Json: TypeAlias = dict[str, Any]
Value = TypeVar("Value")


@dataclass(frozen=True)
class _Pause:
    seconds: float


_Step: TypeAlias = httpx.Request | _Pause | Callable[[], Any]
_Call: TypeAlias = Generator[_Step, Any, Value]


@dataclass(frozen=True)
class _Calls:
    """The calls of a service, as steps: a request is answered by its response, or by the error that came instead."""

    build: Callable[..., httpx.Request]
    timeout_s: float

    def detect(self, image: ClientImage, query: dict[str, Query]) -> _Call[Json]:
        _, data = yield functools.partial(_read, image, 0)
        return (yield from self._ask("POST", "/v1/detect", params=query, content=data, media_type="application/octet-stream"))

    def detect_batch(self, images: Iterable[ClientImage], query: dict[str, Query]) -> _Call[list[Json]]:
        results: list[Json] = []
        files: list[tuple[str, bytes]] = []
        for index, image in enumerate(images):
            file = yield functools.partial(_read, image, index)
            if files and (len(files) == BATCH_IMAGES or sum(len(data) for _, data in [*files, file]) > BATCH_BYTES):
                results += yield from self._ask_batch(files, query)
                files = []
            files.append(file)
        if files:
            results += yield from self._ask_batch(files, query)
        return results

    def model(self) -> _Call[Json]:
        return self._ask("GET", "/v1/model")

    def ready(self) -> _Call[bool]:
        reply = yield self.build("GET", "/readyz", timeout=self.timeout_s)
        return isinstance(reply, httpx.Response) and reply.is_success

    def _ask_batch(self, files: list[tuple[str, bytes]], query: dict[str, Query]) -> _Call[list[Json]]:
        answer = yield from self._ask("POST", "/v1/detect/batch", params=query, files=[("file", file) for file in files])
        results: list[Json] = answer["results"]
        return results

    def _ask(self, method: str, path: str, media_type: str = "", **content: Any) -> _Call[Json]:
        """Send a request until the service is not busy, or until another attempt would begin after the time limit."""
        request_id = uuid.uuid4().hex
        headers = {"X-Request-ID": request_id} | ({"Content-Type": media_type} if media_type else {})
        deadline = time.monotonic() + self.timeout_s
        was_cut = False
        while True:
            # A pause may end a little late, and a time limit of 0 would be none.
            timeout_s = max(deadline - time.monotonic(), 0.01)
            request = self.build(method, path, headers=headers, timeout=timeout_s, **content)
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
            yield _Pause(pause_s)


class Client:
    """Client of a service, for threads; use it as a context manager, or close it, so that its connections are closed."""

    def __init__(self, url: str, *, api_key: str = "", timeout_s: float = 30.0, **http: Any) -> None:
        """Keep the address of a service; nothing is sent.

        Args:
            url: address of the service with its prefix, such as `http://127.0.0.1:8000`.
            api_key: key of this client, for a service with keys.
            timeout_s: longest time for a request with its repetitions while the service is busy, seconds.
            http: further options of `httpx.Client`, such as `verify` for the certificate of a service.
        """
        self._http = httpx.Client(base_url=url, headers=_headers(api_key), **http)
        self._calls = _Calls(self._http.build_request, timeout_s)

    def detect(self, image: ClientImage, **query: Query) -> Json:
        """Return the answer of `POST /v1/detect` to an image.

        Args:
            image: see `ClientImage`; arrays and PIL images are sent as PNG.
            query: query parameters of the service, such as `confidence=0.5` and `masks=False`.

        Raises:
            RefusedError: the service cannot use the image, a parameter or the key; `code` says why.
            BusyError: the service was busy or not ready until the time limit.
            UnreachableError: the service gave no answer.
            ServiceError: the service failed.
            StorageError: a path or URL cannot be read.
            ImageError: an array or a PIL image is no image.
        """
        return self._run(self._calls.detect(image, query))

    def detect_batch(self, images: Iterable[ClientImage], **query: Query) -> list[Json]:
        """Return `results` of `POST /v1/detect/batch`: `name` and the answer to each image, or `name` and its `error`.

        Images beyond BATCH_IMAGES and BATCH_BYTES are sent in further requests, one after another, each with the time limit of a request.
        The name is that of the file, or `image-INDEX`. The errors are those of `detect`, for a request as a whole.
        """
        return self._run(self._calls.detect_batch(images, query))

    def model(self) -> Json:
        """Return the description of the served weights; raises the errors of `detect`."""
        return self._run(self._calls.model())

    def ready(self) -> bool:
        """Return True if the service can be reached and its network works; asks once."""
        return self._run(self._calls.ready())

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _run(self, call: _Call[Value]) -> Value:
        outcome: Any = None
        while True:
            try:
                step = call.send(outcome)
            except StopIteration as end:
                return end.value
            outcome = self._perform(step)

    def _perform(self, step: _Step) -> Any:
        if isinstance(step, _Pause):
            return time.sleep(step.seconds)
        if not isinstance(step, httpx.Request):
            return step()
        try:
            return self._http.send(step)
        except httpx.RequestError as error:
            return error


class AsyncClient:
    """Client of a service for asyncio; the calls, their results and errors are those of `Client`."""

    def __init__(self, url: str, *, api_key: str = "", timeout_s: float = 30.0, **http: Any) -> None:
        """Keep the address of a service; the arguments are those of `Client`, `http` has options of `httpx.AsyncClient`."""
        self._http = httpx.AsyncClient(base_url=url, headers=_headers(api_key), **http)
        self._calls = _Calls(self._http.build_request, timeout_s)

    async def detect(self, image: ClientImage, **query: Query) -> Json:
        """Return the answer to an image; see `Client.detect`."""
        return await self._run(self._calls.detect(image, query))

    async def detect_batch(self, images: Iterable[ClientImage], **query: Query) -> list[Json]:
        """Return the answers to images; see `Client.detect_batch`."""
        return await self._run(self._calls.detect_batch(images, query))

    async def model(self) -> Json:
        """Return the description of the served weights; see `Client.model`."""
        return await self._run(self._calls.model())

    async def ready(self) -> bool:
        """Return True if the service can be reached and its network works; asks once."""
        return await self._run(self._calls.ready())

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    async def _run(self, call: _Call[Value]) -> Value:
        outcome: Any = None
        while True:
            try:
                step = call.send(outcome)
            except StopIteration as end:
                return end.value
            outcome = await self._perform(step)

    async def _perform(self, step: _Step) -> Any:
        if isinstance(step, _Pause):
            return await asyncio.sleep(step.seconds)
        if not isinstance(step, httpx.Request):
            return await asyncio.to_thread(step)
        try:
            return await self._http.send(step)
        except httpx.RequestError as error:
            return error


def _headers(api_key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


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

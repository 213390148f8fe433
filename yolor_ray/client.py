"""Clients of a service that `yolor-ray serve` runs: `Client`, and `AsyncClient` for asyncio.

Both perform the steps of the same calls. This module needs neither torch nor Ray.
"""

import asyncio
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import httpx

from yolor_ray.client_calls import Call, CallResult, Calls, ClientImage, Json, Pause, Query, Step, Value, next_step


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
        self._calls = Calls(self._http.build_request, timeout_s)

    def detect(self, image: ClientImage, *, model: str = "", **query: Query) -> Json:
        """Return the answer of `POST /v1/detect` to an image.

        Args:
            image: see `ClientImage`; arrays and PIL images are sent as PNG.
            model: name of a model of the service; empty for the default model.
            query: query parameters of the service, such as `confidence=0.5` and `masks=False`.

        Raises:
            RefusedError: the service cannot use the image, a parameter or the key; `code` says why.
            BusyError: the service was busy or not ready until the time limit.
            UnreachableError: the service gave no answer.
            ServiceError: the service failed.
            StorageError: a path or URL cannot be read.
            ImageError: an array or a PIL image is no image.
        """
        return self._run(self._calls.detect(image, model, query))

    def detect_batch(self, images: Iterable[ClientImage], *, model: str = "", **query: Query) -> list[Json]:
        """Return `results` of `POST /v1/detect/batch`: `name` and the answer to each image, or `name` and its `error`.

        Images beyond 32, or beyond those that the service takes, and beyond 16 MB are sent in further requests, one after another, each
        with the time limit of a request.
        The name is that of the file, or `image-INDEX`. `model` and the errors are those of `detect`, for a request as a whole.
        """
        return self._run(self._calls.detect_batch(images, model, query))

    def model(self, model: str = "") -> Json:
        """Return the description of the weights of a model, by default those of the default model; raises the errors of `detect`."""
        return self._run(self._calls.model(model))

    def models(self) -> list[Json]:
        """Return name, state and description of each model of the service; raises the errors of `detect`."""
        return self._run(self._calls.models())

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

    def _run(self, call: Call[Value]) -> Value:
        step = next_step(call, None)
        while not isinstance(step, CallResult):
            step = next_step(call, self._perform(step))
        return step.value

    def _perform(self, step: Step) -> Any:
        if isinstance(step, Pause):
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
        self._calls = Calls(self._http.build_request, timeout_s)

    async def detect(self, image: ClientImage, *, model: str = "", **query: Query) -> Json:
        """Return the answer to an image; see `Client.detect`."""
        return await self._run(self._calls.detect(image, model, query))

    async def detect_batch(self, images: Iterable[ClientImage], *, model: str = "", **query: Query) -> list[Json]:
        """Return the answers to images; see `Client.detect_batch`."""
        return await self._run(self._calls.detect_batch(images, model, query))

    async def model(self, model: str = "") -> Json:
        """Return the description of the weights of a model; see `Client.model`."""
        return await self._run(self._calls.model(model))

    async def models(self) -> list[Json]:
        """Return the models of the service; see `Client.models`."""
        return await self._run(self._calls.models())

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

    async def _run(self, call: Call[Value]) -> Value:
        step = next_step(call, None)
        while not isinstance(step, CallResult):
            step = next_step(call, await self._perform(step))
        return step.value

    async def _perform(self, step: Step) -> Any:
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        if not isinstance(step, httpx.Request):
            return await asyncio.to_thread(step)
        try:
            return await self._http.send(step)
        except httpx.RequestError as error:
            return error


def _headers(api_key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}

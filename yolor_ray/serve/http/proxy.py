"""Answers of Ray's Python proxy before the service is ready: 503 in JSON, as the service itself answers.

The proxy answers 404 in plain text before it knows the application, and load balancers take a 404 for a wrong path. Afterwards it holds
requests until a replica is there, and probes would wait. Where HAProxy runs, it passes requests on to this proxy while there is no replica.
"""

import asyncio
import json
import re
from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from yolor_ray.cluster.ray_internals import NO_ROUTE
from yolor_ray.serve.haproxy import NO_REPLICA
from yolor_ray.serve.http.upgrade import ignore_upgrades

PROBES = re.compile(r".*/(readyz|healthz|v2/health/(live|ready)|v2/models/[^/]+/ready)")
ROUTES = re.compile(
    rf"{PROBES.pattern}|.*/(v1/(detect|detect/batch|model|models|models/[^/]+(/detect|/detect/batch)?)|v2|v2/models/[^/]+(/infer)?)"
)
"""Paths that this package serves, after any prefix; other 404 answers of the proxy are for applications of others."""
RAY_ROUTES = "/-/"
"""Start of the paths that the proxy answers by itself."""
PROBE_TIMEOUT_S = 2.0
"""Longest wait of a probe for a replica."""


def middlewares() -> list[Any]:
    """Return the middlewares of Ray's Python proxy, which calls this function when it starts, and make the proxy ignore offers."""
    return [*ignore_upgrades(), Middleware(NotReadyMiddleware)]


class NotReadyMiddleware:
    """ASGI middleware with the answer 503 in JSON where the proxy knows no application, or where a probe waits for a replica."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request to the proxy."""
        if scope["type"] != "http" or not ROUTES.fullmatch(scope["path"]) or scope["path"].startswith(RAY_ROUTES):
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        call = asyncio.ensure_future(self._app(scope, receive, answer.send))
        try:
            # Without a probe's path, or once an answer has begun, the proxy has all the time that it takes.
            timeout_s = PROBE_TIMEOUT_S if PROBES.fullmatch(scope["path"]) else None
            await asyncio.wait([call, answer.started], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if not call.done() and not answer.started.done():
                await answer.refuse()
                return
            await call
        finally:
            call.cancel()
            answer.started.cancel()


class _Answer:
    """Answer of the proxy on its way to the client; the proxy's 404 without a route becomes 503."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._held: Message | None = None
        self._refused = False
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def send(self, message: Message) -> None:
        """Send one message; a plain 404 waits for its body, which tells whose it is."""
        if self._refused:
            return
        if not self.started.done():
            self.started.set_result(None)
        if message["type"] == "http.response.start" and _is_plain_404(message):
            self._held = message
            return
        if self._held is not None:
            if NO_ROUTE.encode() in message.get("body", b""):
                await self.refuse()
                return
            start, self._held = self._held, None
            await self._send(start)
        await self._send(message)

    async def refuse(self) -> None:
        """Answer 503 in JSON."""
        self._refused = True
        body = json.dumps(NO_REPLICA).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"retry-after", b"1")]
        await self._send({"type": "http.response.start", "status": 503, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def _is_plain_404(start: Message) -> bool:
    content_type: bytes = dict(start["headers"]).get(b"content-type", b"")
    return start["status"] == 404 and content_type.startswith(b"text/plain")

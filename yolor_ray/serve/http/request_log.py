"""Request ids, and what is known of a request when its answer begins: metrics by route, status and error code, and the access log.

A line of the access log is one JSON object. No line has a key, a header, a query or an image.
"""

import json
import logging
import random
import re
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from yolor_ray import config
from yolor_ray.errors import ConfigError
from yolor_ray.serve.service import Service

logger = logging.getLogger(__name__)

VALID_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class AccessLog:
    """File with one JSON line per sampled request; it is opened for each line, so that a log rotation may move it away."""

    def __init__(self, settings: config.ServeConfig) -> None:
        """Raise ConfigError if the file cannot be written."""
        self._path, self._rate = Path(settings.access_log), settings.access_log_rate
        try:
            self._append("")
        except OSError as error:
            raise ConfigError(f"access_log: found {self._path} ({error.strerror}), expected a file that can be written") from None

    def write(self, line: dict[str, Any]) -> None:
        """Append a line, or leave it out by the rate; a failure is logged, and the request is answered all the same."""
        if line["status"] >= 500 or random.random() < self._rate:
            try:
                self._append(json.dumps(line) + "\n")
            except OSError as error:
                logger.warning("event=access_log_failed file=%s error='%s'", self._path, error)

    def _append(self, text: str) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(text)


class RequestLogMiddleware:
    """Middleware for request ids, for the metrics of answers, and for the access log."""

    def __init__(self, app: ASGIApp, service: Service, echo: bool, log: AccessLog | None) -> None:
        self._app, self._service, self._echo, self._log = app, service, echo, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request to the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client_id = Headers(scope=scope).get("x-request-id", "")
        request_id = client_id if VALID_REQUEST_ID.fullmatch(client_id) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                if self._echo:
                    headers["X-Request-ID"] = request_id
                self._record(scope, message["status"], time.perf_counter() - started)
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            # The framework answers 500 outside of this middleware.
            scope["state"]["error_code"] = "internal_error"
            self._record(scope, 500, time.perf_counter() - started)
            raise

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        # The route's template and not the path: clients can invent paths, and each path would be a new time series.
        route = getattr(scope.get("route"), "path", "other")
        state = scope["state"]
        self._service.metrics.count("yolor_requests", route=route, status=str(status))
        self._service.metrics.observe("yolor_request_seconds", seconds, route=route)
        if "error_code" in state:
            self._service.metrics.count("yolor_refusals", reason=state["error_code"])
        if self._log is not None:
            request = {"time": datetime.now(UTC).isoformat(), "request_id": state["request_id"], "method": scope["method"], "route": route}
            key = state["api_key"].name if "api_key" in state else None
            answer = {"status": status, "code": state.get("error_code"), "seconds": round(seconds, 6)}
            model = state.get("model", self._service.models.current.identity)
            self._log.write({**request, "key": key, "model": model, **answer, **state.get("facts", {})})

"""OpenTelemetry traces, where the standard variables `OTEL_*` ask for them: one server span per request, with its stages as children.

The package opentelemetry-sdk is optional and imported where it is used. No attribute has a key, a header, a query or an image.
"""

import importlib.metadata
import logging
import os
import time
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import yolor_ray

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.trace import Span, Tracer

    from yolor_ray.serve.service import Service

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT")
"""Methods that a span names; a client can invent others."""
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
ENTRY_POINTS = "opentelemetry_traces_exporter"
"""Group of the entry points by which installed packages offer exporters of traces."""

logger = logging.getLogger(__name__)


def request_tracer() -> "Tracer | None":
    """Return the tracer that the environment asks for; None without such variables, or without the packages."""
    names = exporter_names()
    if not names:
        return None
    try:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporters = [_exporter(name) for name in names]
    except ImportError as error:
        logger.warning("event=tracing_unavailable reason='%s' install='pip install yolor_ray[tracing]'", error)
        return None
    # Not the provider of the process, which is Ray's to set. The provider reads OTEL_TRACES_SAMPLER and the limits by itself.
    provider = TracerProvider(resource=_resource())
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    logger.info("event=tracing_started exporters=%s", ",".join(names))
    return provider.get_tracer("yolor_ray", yolor_ray.__version__)


def exporter_names() -> list[str]:
    """Return the names of the exporters that the environment asks for; an endpoint of OTLP asks for `otlp`."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    default = "otlp" if any(os.environ.get(name) for name in ENDPOINTS) else "none"
    names = [name.strip() for name in (os.environ.get("OTEL_TRACES_EXPORTER") or default).split(",")]
    return [name for name in names if name not in ("", "none")]


def _exporter(name: str) -> Any:
    """Return an exporter of spans, which reads its own variables; raises ImportError if no installed package offers this exporter."""
    protocol = next((os.environ[variable].strip() for variable in PROTOCOLS if os.environ.get(variable)), "http/protobuf")
    entry = f"otlp_proto_{protocol.partition('/')[0]}" if name == "otlp" else name
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS, name=entry):
        return point.load()()
    raise ImportError(f"found no package with the exporter {entry}")


def _resource() -> "Resource":
    """Return the description of this process, with a name of the service where the environment has none."""
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource

    resource = Resource.create()
    is_named = not str(resource.attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service")
    return resource if is_named else resource.merge(Resource({SERVICE_NAME: "yolor_ray"}))


def note_stages(request: Request, **stages: tuple[float, float]) -> None:
    """Keep start and end of stages, seconds of `time.perf_counter`, for the spans of a request that is traced."""
    noted = request.scope.get("state", {}).get("stages")
    if noted is not None:
        noted += stages.items()


class TracingMiddleware:
    """Middleware for the spans of each request, whose parent is that of the header `traceparent`."""

    def __init__(self, app: ASGIApp, tracer: "Tracer", service: "Service") -> None:
        self._app, self._tracer, self._service = app, tracer, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request to the application."""
        span = self._start(scope) if scope["type"] == "http" else None
        if span is None or not span.is_recording():
            await self._app(scope, receive, send)
            return
        scope["state"]["stages"] = []
        # A request that fails without an answer is answered outside of this middleware.
        status = 500
        clock_ns = time.time_ns() - time.perf_counter_ns()

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            status = message["status"] if message["type"] == "http.response.start" else status
            await send(message)

        try:
            await self._app(scope, receive, send_noting_status)
        finally:
            self._end(span, scope, status, clock_ns)

    def _start(self, scope: Scope) -> "Span":
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        attributes = {"http.request.method": _method(scope), "yolor_ray.request_id": scope["state"]["request_id"]}
        return self._tracer.start_span(_method(scope), extract(Headers(scope=scope)), SpanKind.SERVER, attributes)

    def _end(self, span: "Span", scope: Scope, status: int, clock_ns: int) -> None:
        from opentelemetry.trace import StatusCode, set_span_in_context

        for name, (start_s, end_s) in scope["state"]["stages"]:
            start_ns, end_ns = (clock_ns + int(seconds * 1e9) for seconds in (start_s, end_s))
            self._tracer.start_span(name, set_span_in_context(span), start_time=start_ns).end(end_ns)
        # The route's template and not the path, which a client can invent.
        route = getattr(scope.get("route"), "path", None)
        if route is not None:
            span.update_name(f"{_method(scope)} {route}")
            span.set_attribute("http.route", route)
        span.set_attribute("http.response.status_code", status)
        if status >= 400:
            span.set_attribute("error.type", scope["state"].get("error_code", "internal_error"))
        if status >= 500:
            span.set_status(StatusCode.ERROR)
        model = scope["state"].get("model", self._service.models.current.identity)
        span.set_attributes({f"yolor_ray.model.{name}": text for name, text in model.items()})
        facts = scope["state"].get("facts", {})
        counts = {name: facts[name] for name in ("body_bytes", "images", "failed_images", "tiles", "detections") if name in facts}
        span.set_attributes({f"yolor_ray.{name}": count for name, count in counts.items()})
        span.end()


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in METHODS else "_OTHER"

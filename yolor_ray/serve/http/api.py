"""Map HTTP to the service: routes, parameters, answers, request ids, OpenAPI and the two pages.

The pages and the API description need nothing from the internet.
"""

import re
import time
import uuid
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import yolor_ray
from yolor_ray import config
from yolor_ray.serve.engine import Options
from yolor_ray.serve.http import errors
from yolor_ray.serve.http.schemas import Answer, ErrorBody, ModelCard
from yolor_ray.serve.response import describe_model
from yolor_ray.serve.service import Detected, Service

SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
MOST_DETECTIONS = 1000
RANGES = {
    "confidence": "a number from 0 to 1",
    "iou": "a number over 0, up to 1",
    "max_detections": f"a whole number from 1 to {MOST_DETECTIONS}",
    **dict.fromkeys(("masks", "keypoints", "labels", "embeddings"), "true or false"),
}
"""What each query parameter may be."""
FILLED = ("confidence", "iou", "max_detections")
"""Those that the service's settings fill where a request names none."""
PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob: data:; connect-src 'self'"


class DetectParams(BaseModel):
    """The query parameters of a detection."""

    model_config = ConfigDict(extra="forbid")
    confidence: float | None = Field(None, ge=0, le=1, allow_inf_nan=False, description="Least confidence of a returned box.")
    iou: float | None = Field(None, gt=0, le=1, allow_inf_nan=False, description="Overlap above which two boxes are one object.")
    max_detections: int | None = Field(None, ge=1, le=MOST_DETECTIONS, description="Most boxes.")
    masks: bool = Field(True, description="Whether to answer the mask of each object.")
    keypoints: bool = Field(True, description="Whether to answer the keypoints of each object.")
    labels: bool = Field(True, description="Whether to answer the labels of the whole image.")
    embeddings: bool = Field(True, description="Whether to answer the embedding of each object.")

    def options(self, settings: config.ServeConfig) -> Options:
        """Fill what was not asked for from the service's settings."""
        asked = self.model_dump(exclude_none=True)
        usual = {name: getattr(settings, name) for name in FILLED}
        return Options(**{**usual, **asked})


BINARY = {"schema": {"type": "string", "format": "binary"}}
BODY = {
    "required": True,
    "content": {
        "image/*": BINARY,
        "multipart/form-data": {"schema": {"type": "object", "required": ["file"], "properties": {"file": BINARY["schema"]}}},
        "application/json": {
            "schema": {"type": "object", "required": ["image"], "properties": {"image": {"type": "string", "format": "byte"}}}
        },
    },
}
REFUSALS: dict[int | str, dict[str, Any]] = {code: {"model": ErrorBody} for code in (400, 408, 413, 415, 422, 429, 500, 504)}

router = APIRouter()


@router.post("/v1/detect", response_model=Answer, responses=REFUSALS, openapi_extra={"requestBody": BODY})
async def detect(request: Request, asked: Annotated[DetectParams, Query()]) -> Response:
    """Find what the network has learned in one image, all tasks at once: raw bytes (fastest), multipart `file`, or JSON with base64."""
    service: Service = request.app.state.service
    detected = await service.detect(request, asked.options(service.settings))
    return JSONResponse(_answer(service, errors.request_id_of(request), detected))


@router.get("/v1/model", response_model=ModelCard)
async def model(request: Request) -> Response:
    """Say which weights are served and what they know."""
    service: Service = request.app.state.service
    card = {
        **describe_model(service.info),
        "engine": service.engine_name,
        "precision": service.precision,
        "defaults": {name: getattr(service.settings, name) for name in FILLED},
    }
    return JSONResponse(card)


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Answer as long as the process does."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"model": ErrorBody}})
async def readyz(request: Request) -> dict[str, str]:
    """Answer 200 while the weights are loaded and the network works."""
    if not request.app.state.service.ready:
        raise errors.ApiError("not_ready", "the network failed several times in a row; this replica is being replaced")
    return {"status": "ready"}


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Return this replica's metrics in Prometheus text format; with several replicas scrape Ray's own metrics ports."""
    text, content_type = request.app.state.service.meter.text()
    return Response(text, headers={"Content-Type": content_type, "Cache-Control": "no-store"})


@router.get("/", include_in_schema=False)
async def page() -> Response:
    """Show the page that takes an image."""
    return _page("page.html")


@router.get("/docs", include_in_schema=False)
async def docs() -> Response:
    """Show the API, rendered from /openapi.json."""
    return _page("docs.html")


def create_app(service: Service, *, echo_request_id: bool = True) -> FastAPI:
    """Return the ASGI application.

    Args:
        service: what answers.
        echo_request_id: whether to send `X-Request-ID`; Ray Serve's HTTP server adds that header by itself.
    """
    app = FastAPI(title="yolor_ray", version=yolor_ray.__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.service = service
    app.include_router(router)
    errors.install(app, RANGES)
    app.add_middleware(RequestIdMiddleware, service=service, echo=echo_request_id)
    return app


class RequestIdMiddleware:
    """Give each request an id, and count its answer by route and code."""

    def __init__(self, app: ASGIApp, service: Service, echo: bool) -> None:
        self._app, self._service, self._echo = app, service, echo

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope).get("x-request-id", "")
        request_id = asked if SANE_REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.perf_counter()

        async def send_identified(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                if self._echo:
                    headers["X-Request-ID"] = request_id
                self._count(scope, message["status"], time.perf_counter() - started)
            await send(message)

        try:
            await self._app(scope, receive, send_identified)
        except Exception:
            # The framework answers 500 outside of this middleware.
            self._count(scope, 500, time.perf_counter() - started)
            raise

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        # The template, not the path: anybody can make up paths, and each would be a new time series.
        route = getattr(scope.get("route"), "path", "other")
        self._service.meter.count("yolor_requests", route=route, status=str(status))
        self._service.meter.observe("yolor_request_seconds", seconds, route=route)


def _answer(service: Service, request_id: str, detected: Detected) -> dict[str, Any]:
    labels = {} if detected.found.labels is None else {"labels": detected.found.labels}
    return {
        "request_id": request_id,
        "model": {"name": service.info.name, "version": service.info.version},
        "image": {"width": detected.width, "height": detected.height},
        "detections": detected.found.detections,
        **labels,
        "timing_ms": detected.stages_ms,
    }


def _page(name: str) -> Response:
    headers = {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"}
    return HTMLResponse((Path(__file__).parent / name).read_text("utf-8"), headers=headers)

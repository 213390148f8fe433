"""Routes of the service: responses, request ids, OpenAPI and the two HTML pages.

The pages and the API description load nothing from the internet.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pydantic_core
from fastapi import APIRouter, FastAPI, Request
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import yolor_ray
from yolor_ray.config.serve import FALLBACK_CONFIDENCE, MAX_IMAGES
from yolor_ray.serve.catalog.catalog import summary
from yolor_ray.serve.http import errors, kserve, tracing
from yolor_ray.serve.http.api_keys import KEYED
from yolor_ray.serve.http.body import named_images, time_limit_s
from yolor_ray.serve.http.parameters import DetectParams, default_limits, in_words, query_schema, read_query
from yolor_ray.serve.http.request_log import AccessLog, RequestLogMiddleware
from yolor_ray.serve.http.schemas import Answer, BatchAnswer, ErrorBody, ModelCard, ModelNames
from yolor_ray.serve.requests import DetectedImage, ImageResult
from yolor_ray.serve.response import Json, model_json
from yolor_ray.serve.rollout.models import Model
from yolor_ray.serve.service import Service

PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob: data:; connect-src 'self'"


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
FILES = {"type": "array", "items": BINARY["schema"], "minItems": 1, "maxItems": MAX_IMAGES}
BATCH_BODY = {
    "required": True,
    "content": {"multipart/form-data": {"schema": {"type": "object", "required": ["file"], "properties": {"file": FILES}}}},
}
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorBody} for code in (400, 401, 403, 408, 413, 415, 422, 429, 500, 504)
}
NAMED_ERRORS: dict[int | str, dict[str, Any]] = ERROR_RESPONSES | {code: {"model": ErrorBody} for code in (404, 503)}
CARD_ERRORS: dict[int | str, dict[str, Any]] = {code: NAMED_ERRORS[code] for code in (401, 403, 404, 429, 503, 504)}

Handler = TypeVar("Handler", bound=Callable[..., Any])

router = APIRouter()


def _detection(path: str, answer: type, responses: Mapping[int | str, dict[str, Any]], body: Json) -> Callable[[Handler], Handler]:
    """Return the decorator of a route that detects objects; the handler reads query and body itself."""
    described = {"parameters": query_schema(), "requestBody": body}
    return router.post(path, dependencies=KEYED, response_model=answer, responses=dict(responses), openapi_extra=described)


@_detection("/v1/detect", Answer, ERROR_RESPONSES, BODY)
async def detect(request: Request) -> Response:
    """Detect objects in one image, with all tasks of the network: raw bytes (fastest), multipart `file`, or JSON with base64."""
    return await _detect(request, None)


@_detection("/v1/models/{name}/detect", Answer, NAMED_ERRORS, BODY)
async def detect_by_model(request: Request, name: str) -> Response:
    """Detect objects in one image with a model of `/v1/models`."""
    return await _detect(request, name)


@_detection("/v1/detect/batch", BatchAnswer, ERROR_RESPONSES, BATCH_BODY)
async def detect_batch(request: Request) -> Response:
    """Detect objects in each of several images, multipart with parts `file`; an image that cannot be used leaves the others as they are."""
    return await _detect_batch(request, None)


@_detection("/v1/models/{name}/detect/batch", BatchAnswer, NAMED_ERRORS, BATCH_BODY)
async def detect_batch_by_model(request: Request, name: str) -> Response:
    """Detect objects in each of several images with a model of `/v1/models`."""
    return await _detect_batch(request, name)


async def _detect(request: Request, name: str | None) -> Response:
    service: Service = request.app.state.service
    fields = await service.detect(request, read_query(request).options(service.settings), name)
    return _json({"request_id": errors.request_id(request), **fields})


async def _detect_batch(request: Request, name: str | None) -> Response:
    service: Service = request.app.state.service
    options = read_query(request).options(service.settings)
    async with service.receive(request, name) as received:
        content_type = request.headers.get("content-type", "")
        files = await service.in_decoder(named_images, content_type, received.body, service.max_images)
        results = await service.detect_images(received, [data for _, data in files], options)
    named = [{"name": name, **_result_json(service, result)} for (name, _), result in zip(files, results, strict=True)]
    return _json({"request_id": errors.request_id(request), "model": received.model.identity, "results": named})


def _json(fields: Json) -> Response:
    """Return a response with many boxes, which pydantic encodes faster than `json`."""
    return Response(pydantic_core.to_json(fields), media_type="application/json")


def _result_json(service: Service, result: ImageResult) -> Json:
    """Return the fields of an image of a batch, and count its error."""
    if isinstance(result, DetectedImage):
        return result.fields
    service.metrics.count("yolor_refusals", reason=result.code)
    return {"error": {"code": result.code, "message": str(result)}}


@router.get("/v1/model", dependencies=KEYED, response_model=ModelCard)
async def model(request: Request) -> Response:
    """Return the description of the served weights, those of the default model."""
    service: Service = request.app.state.service
    return JSONResponse(_card(service, service.models.current))


@router.get("/v1/models", dependencies=KEYED, response_model=ModelNames)
async def models(request: Request) -> Response:
    """Return the names of the models, and the replica's knowledge of each."""
    catalog = request.app.state.service.catalog
    return JSONResponse({"models": [summary(catalog, named) for named in catalog.named.values()]})


@router.get("/v1/models/{name}", dependencies=KEYED, response_model=ModelCard, responses=CARD_ERRORS)
async def model_by_name(request: Request, name: str) -> Response:
    """Return the description of the weights of a model, which is loaded for that."""
    service: Service = request.app.state.service
    current = await service.catalog.current(name, time_limit_s(request, service.settings.request_timeout_s))
    return JSONResponse(_card(service, current))


def _card(service: Service, current: Model) -> Json:
    """Return the fields of ModelCard."""
    return {
        **current.identity,
        **model_json(current.info),
        "engine": current.engine.name,
        "precision": current.engine.precision,
        "fallback_confidence": FALLBACK_CONFIDENCE,
        "max_images": service.max_images,
        "defaults": default_limits(service.settings),
    }


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Return 200 as long as the process runs."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"model": ErrorBody}})
async def readyz(request: Request) -> dict[str, str]:
    """Return 200 while the weights are loaded and the network works, else 503."""
    request.app.state.service.check_ready()
    return {"status": "ready"}


@router.get("/metrics", dependencies=KEYED, response_class=Response)
async def metrics(request: Request) -> Response:
    """Return this replica's metrics in Prometheus text format; with several replicas scrape Ray's own metrics ports."""
    text, content_type = request.app.state.service.metrics.text()
    return Response(text, headers={"Content-Type": content_type, "Cache-Control": "no-store"})


@router.get("/", include_in_schema=False)
async def page() -> Response:
    """Return the page that detects objects in a dropped image."""
    return _html("page.html")


@router.get("/docs", include_in_schema=False)
async def docs() -> Response:
    """Return the page that renders /openapi.json."""
    return _html("docs.html")


def create_app(service: Service, *, echo_request_id: bool = True) -> FastAPI:
    """Return the ASGI application of a service.

    Args:
        service: service that answers the requests.
        echo_request_id: whether to send `X-Request-ID`; Ray Serve's HTTP server adds that header by itself.
    """
    options: dict[str, Any] = {"docs_url": None, "redoc_url": None, "redirect_slashes": False, "lifespan": _stopping_rollouts}
    app = FastAPI(title="yolor_ray", version=yolor_ray.__version__, **options)
    app.state.service = service
    app.include_router(router)
    app.include_router(kserve.router)
    errors.install_handlers(app, {name: in_words(name) for name in DetectParams.model_fields})
    tracer = tracing.request_tracer()
    if tracer is not None:
        app.add_middleware(tracing.TracingMiddleware, tracer=tracer, service=service)
    log = AccessLog(service.settings) if service.settings.access_log else None
    app.add_middleware(RequestLogMiddleware, service=service, echo=echo_request_id, log=log)
    app.add_middleware(HeadMiddleware)
    if service.settings.cors_origins:
        exposed = ["X-Request-ID", "Retry-After"]
        origins, methods = service.settings.cors_origins, ["GET", "HEAD", "POST"]
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=methods, allow_headers=["*"], expose_headers=exposed)
    return app


@contextlib.asynccontextmanager
async def _stopping_rollouts(app: FastAPI) -> AsyncIterator[None]:
    """Stop the rollouts before the process ends: a version whose images fail for that would be rejected."""
    yield
    app.state.service.catalog.stop()


class HeadMiddleware:
    """Middleware for HEAD, which load balancers and monitors send: the answer to GET, without its body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request to the application."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self._app({**scope, "method": "GET"}, receive, send_without_body)


def _html(name: str) -> Response:
    headers = {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"}
    return HTMLResponse((Path(__file__).parent / name).read_text("utf-8"), headers=headers)

"""Errors of the service as JSON with a stable code.

Every response other than a success is `{"code", "message", "request_id"}`, and `error` again on routes of the Open Inference Protocol; no
stack trace leaves the process.
"""

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from yolor_ray.errors import ImageError, YolorError

STATUS: Mapping[str, int] = {
    "bad_request": 400,
    "empty_image": 400,
    "bad_json": 400,
    "bad_base64": 400,
    "bad_multipart": 400,
    "bad_tensor": 400,
    "missing_key": 401,
    "wrong_key": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "body_timeout": 408,
    "body_too_large": 413,
    "image_too_large": 413,
    "unsupported_encoding": 415,
    "unsupported_image": 415,
    "unsupported_media_type": 415,
    "bad_parameter": 422,
    "masks_too_large": 422,
    "too_many_images": 422,
    "too_many_tiles": 422,
    "truncated_image": 422,
    "overloaded": 429,
    "rate_limited": 429,
    "client_closed": 499,
    "internal_error": 500,
    "model_unavailable": 503,
    "not_ready": 503,
    "timeout": 504,
}
"""HTTP status of every error code."""

RETRY_AFTER_S = 1

logger = logging.getLogger(__name__)


class ApiError(YolorError):
    """Error response to a client; `code` is a key of STATUS."""

    def __init__(self, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.headers = headers


def overloaded(found: str) -> ApiError:
    """Return the error of a request that the replica has no place or no time for."""
    return ApiError("overloaded", f"found {found}; try again later", {"Retry-After": str(RETRY_AFTER_S)})


def request_id(request: Request) -> str:
    """Return the id of a request, which its response and the logs contain."""
    return str(getattr(request.state, "request_id", ""))


def install_handlers(app: FastAPI, allowed: Mapping[str, str]) -> None:
    """Install handlers that answer every exception with the JSON of this module.

    Args:
        app: application that raises ApiError, ImageError or exceptions of the framework.
        allowed: allowed values of each query parameter in words, by name.
    """

    async def answer_bad_parameters(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        faults = dict.fromkeys(_parameter_fault(fault, allowed) for fault in error.errors())
        return _answer(request, "bad_parameter", "; ".join(faults))

    app.add_exception_handler(RequestValidationError, answer_bad_parameters)
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(ImageError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_framework_error)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_crash)


def _answer(request: Request, code: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    request.state.error_code = code
    body = {"code": code, "message": message, "request_id": request_id(request)}
    if getattr(request.scope.get("route"), "path", "").startswith("/v2"):
        # The Open Inference Protocol has the message there.
        body["error"] = message
    return JSONResponse(body, STATUS[code], headers={"Cache-Control": "no-store", **(headers or {})})


def _parameter_fault(fault: Mapping[str, Any], allowed: Mapping[str, str]) -> str:
    # After a parameter's name comes the alternative of its type.
    name = str(fault["loc"][1] if len(fault["loc"]) > 1 else fault["loc"][-1])
    if name not in allowed:
        return f"{name[:80]!r}: unknown parameter, expected one of {', '.join(allowed)}"
    return f"{name}: found {str(fault.get('input'))[:80]!r}, expected {allowed[name]}"


async def _on_api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError | ImageError)
    return _answer(request, error.code, str(error), getattr(error, "headers", None))


async def _on_framework_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    message = {
        "not_found": f"no such page: {request.url.path[:200]!r}; GET /docs lists the routes",
        "method_not_allowed": f"found {request.method} {request.url.path[:200]!r}; GET /docs lists the methods",
    }.get(code, str(error.detail))
    return _answer(request, code, message, error.headers)


async def _on_disconnect(request: Request, error: Exception) -> JSONResponse:
    del error
    return _answer(request, "client_closed", "the client disconnected before its request was complete")


async def _on_crash(request: Request, error: Exception) -> JSONResponse:
    logger.error("event=internal_error request_id=%s error=%s", request_id(request), type(error).__name__)
    return _answer(request, "internal_error", "the service failed; its log has an entry with this request id")

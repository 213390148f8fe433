"""Say what went wrong as JSON with a stable code.

Every answer that is not a success is `{"code", "message", "request_id"}`; no stack trace ever leaves the process.
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
    "truncated_image": 422,
    "overloaded": 429,
    "client_closed": 499,
    "internal_error": 500,
    "not_ready": 503,
    "timeout": 504,
}
"""HTTP status of every code that a client may meet."""

log = logging.getLogger(__name__)


class ApiError(YolorError):
    """Something to answer the client with; `code` is a key of STATUS."""

    def __init__(self, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.headers = headers


def request_id_of(request: Request) -> str:
    """Return the id under which this request is known to client, logs and traces."""
    return str(getattr(request.state, "request_id", ""))


def install(app: FastAPI, ranges: Mapping[str, str]) -> None:
    """Make `app` answer every failure in our form.

    Args:
        app: what raises Problem, ImageError or the framework's own exceptions.
        ranges: what each query parameter may be, in words, by name.
    """

    def refuse_parameters(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return _answer(request, "bad_parameter", "; ".join(_sentence(fault, ranges) for fault in error.errors()))

    app.add_exception_handler(RequestValidationError, refuse_parameters)
    app.add_exception_handler(ApiError, _on_problem)
    app.add_exception_handler(ImageError, _on_problem)
    app.add_exception_handler(HTTPException, _on_framework_refusal)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_crash)


def _answer(request: Request, code: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    body = {"code": code, "message": message, "request_id": request_id_of(request)}
    return JSONResponse(body, STATUS[code], headers={"Cache-Control": "no-store", **(headers or {})})


def _sentence(fault: Mapping[str, Any], ranges: Mapping[str, str]) -> str:
    name = str(fault["loc"][-1])
    if name not in ranges:
        return f"{name[:80]!r}: unknown parameter, expected one of {', '.join(ranges)}"
    return f"{name}: found {str(fault.get('input'))[:80]!r}, expected {ranges[name]}"


def _on_problem(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError | ImageError)
    return _answer(request, error.code, str(error), getattr(error, "headers", None))


def _on_framework_refusal(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    message = {
        "not_found": f"no such page: {request.url.path[:200]!r}; GET /docs lists what there is",
        "method_not_allowed": f"found {request.method} {request.url.path[:200]!r}; GET /docs lists the methods",
    }.get(code, str(error.detail))
    return _answer(request, code, message, error.headers)


def _on_disconnect(request: Request, error: Exception) -> JSONResponse:
    del error
    return _answer(request, "client_closed", "the client went away before its request was complete")


def _on_crash(request: Request, error: Exception) -> JSONResponse:
    log.error("event=internal_error request_id=%s error=%s", request_id_of(request), type(error).__name__)
    return _answer(request, "internal_error", "something broke on our side; the log has it under this request id")

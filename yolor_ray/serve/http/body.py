"""Read the encoded images of a request: raw bytes, multipart `file` or base64 in JSON.

Bytes, seconds, multipart parts and nesting are limited while the body streams in. Compressed bodies are refused, never inflated.
After the body, the connection is watched: work for a client that has left is cancelled.
"""

import asyncio
import binascii
import contextlib
import json
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.requests import ClientDisconnect, Request

from yolor_ray.config.serve import TIMEOUT_HEADER
from yolor_ray.data.images.header import image_format_of
from yolor_ray.serve.http.errors import ApiError
from yolor_ray.serve.http.multipart import file_part, file_parts

ACCEPTED_BODIES = 'image bytes (Content-Type: image/*), multipart/form-data with one part `file`, or JSON {"image": "<base64>"}'

UNDECLARED = ("", "application/x-www-form-urlencoded")
"""Content types of requests that declare none, as curl does by default: the bytes decide."""


def image_bytes(content_type: str, body: bytes) -> bytes:
    """Return the encoded image in a body; raises ApiError unless the body is one of ACCEPTED_BODIES."""
    if not body:
        raise ApiError("empty_image", f"found an empty body, expected {ACCEPTED_BODIES}")
    media_type = _media_type(content_type)
    if media_type in UNDECLARED and body.lstrip()[:1] == b"{":
        return _from_json(body)
    if media_type.startswith("image/") or media_type in ("", "application/octet-stream") or _is_curl_default(media_type, body):
        return body
    if media_type == "multipart/form-data":
        return file_part(content_type, body)
    if media_type == "application/json":
        return _from_json(body)
    raise ApiError("unsupported_media_type", f"found Content-Type {media_type[:80]!r}, expected {ACCEPTED_BODIES}")


def named_images(content_type: str, body: bytes, max_images: int) -> list[tuple[str, bytes]]:
    """Return file name and encoded image of each part of a multipart body; raises ApiError unless they are 1 to `max_images` files."""
    media_type = _media_type(content_type)
    if media_type != "multipart/form-data":
        raise ApiError("unsupported_media_type", f"found Content-Type {media_type[:80]!r}, expected multipart/form-data with parts `file`")
    return file_parts(content_type, body, max_images)


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _is_curl_default(media_type: str, body: bytes) -> bool:
    """Return True for an image that curl sent as a form because no Content-Type was given."""
    return media_type in UNDECLARED and image_format_of(body) is not None


def time_limit_s(request: Request, longest_s: float) -> float:
    """Return the seconds until the answer of a request is due: those of TIMEOUT_HEADER, and `longest_s` at most; raises ApiError."""
    value = request.headers.get(TIMEOUT_HEADER)
    if value is None:
        return longest_s
    if not re.fullmatch(r"[1-9][0-9]{0,8}", value):
        raise ApiError("bad_parameter", f"{TIMEOUT_HEADER}: found {value[:80]!r}, expected a whole number of milliseconds from 1")
    return min(int(value) / 1e3, longest_s)


@contextlib.asynccontextmanager
async def while_connected(request: Request) -> AsyncIterator[None]:
    """Cancel the block and raise ClientDisconnect as soon as the client has left; the body of the request must have been read."""
    task, has_left = asyncio.current_task(), asyncio.Event()
    assert task is not None, "the block runs in a task"

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        has_left.set()
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        # The time limit, or the server's end, may have cancelled the task as well.
        if has_left.is_set() and task.uncancel() == 0:
            raise ClientDisconnect from None
        raise
    finally:
        watcher.cancel()


async def read_body(request: Request, max_bytes: int, timeout_s: float) -> bytes:
    """Return a request's body; raises ApiError if the body is compressed, too large or too slow.

    Args:
        request: request whose body has not been read.
        max_bytes: largest body as transferred (base64 takes four bytes for three).
        timeout_s: longest time until the body is complete.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise ApiError("unsupported_encoding", f"found Content-Encoding {encoding[:80]!r}, expected none: images are compressed already")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > max_bytes:
        raise ApiError("body_too_large", f"found a body of {declared[:20]} bytes, expected at most {max_bytes}")
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise ApiError("body_too_large", f"found a body of more than {max_bytes} bytes, expected at most that")
    except TimeoutError:
        raise ApiError("body_timeout", f"found {len(body)} bytes after {timeout_s:g} s, expected the whole body by then") from None
    return bytes(body)


def parse_json(body: bytes, expected: str) -> Any:
    """Return the document of a body; raises ApiError unless the body is JSON without repeated keys."""
    try:
        return json.loads(body, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        fault = "nested too deep" if isinstance(error, RecursionError) else str(error)[:200]
        raise ApiError("bad_json", f"found no valid JSON ({fault}), expected {expected}") from None


def _from_json(body: bytes) -> bytes:
    document = parse_json(body, '{"image": "<base64>"}')
    if not isinstance(document, Mapping) or set(document) != {"image"} or not isinstance(document["image"], str):
        content = sorted(str(key)[:40] for key in document)[:8] if isinstance(document, Mapping) else type(document).__name__
        raise ApiError("bad_json", f"found {content}, expected an object with the one key 'image', a base64 string")
    return decode_base64(document["image"])


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key occurs twice")
    return fields


def decode_base64(text: str) -> bytes:
    """Return the bytes of padded base64 or of a data URI; raises ApiError."""
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise ApiError("bad_base64", "found a data URI without ';base64,', expected data:image/…;base64,…")
    try:
        characters = "".join(text.split()).encode("ascii").translate(bytes.maketrans(b"-_", b"+/"))
        return binascii.a2b_base64(characters, strict_mode=True)
    except ValueError as error:
        # ascii() because a lone surrogate in the message cannot be encoded in the response.
        raise ApiError("bad_base64", f"found invalid base64 ({ascii(str(error))[:120]}), expected padded base64") from None

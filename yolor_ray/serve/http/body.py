"""Take the encoded image out of a request: raw bytes, a multipart `file` or base64 in JSON.

Everything is bounded while it streams in: bytes, seconds, multipart parts and nesting. Bodies are never inflated.
"""

import asyncio
import binascii
import json
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from yolor_ray.serve.http.errors import ApiError
from yolor_ray.serve.http.multipart import file_part

FORMS = 'image bytes (Content-Type: image/*), multipart/form-data with one part `file`, or JSON {"image": "<base64>"}'


def image_bytes(content_type: str, body: bytes) -> bytes:
    """Return the encoded image that a body carries; raises Problem when it is not of a form that holds one image."""
    if not body:
        raise ApiError("empty_image", f"found an empty body, expected {FORMS}")
    kind = content_type.partition(";")[0].strip().lower()
    if kind.startswith("image/") or kind in ("", "application/octet-stream"):
        return body
    if kind == "multipart/form-data":
        return file_part(content_type, body)
    if kind == "application/json":
        return _from_json(body)
    raise ApiError("unsupported_media_type", f"found Content-Type {kind[:80]!r}, expected {FORMS}")


async def read_body(request: Request, max_bytes: int, timeout_s: float) -> bytes:
    """Return a request's body; raises Problem when it is compressed, too large or too slow.

    Args:
        request: its body is not read yet.
        max_bytes: largest body as it travels (base64 counts four bytes for three).
        timeout_s: longest time for the body to come in.
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


def _from_json(body: bytes) -> bytes:
    try:
        document = json.loads(body, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        fault = "nested too deep" if isinstance(error, RecursionError) else str(error)[:200]
        raise ApiError("bad_json", f'found no valid JSON ({fault}), expected {{"image": "<base64>"}}') from None
    if not isinstance(document, Mapping) or set(document) != {"image"} or not isinstance(document["image"], str):
        found = sorted(str(key)[:40] for key in document)[:8] if isinstance(document, Mapping) else type(document).__name__
        raise ApiError("bad_json", f"found {found}, expected an object with the one key 'image', a base64 string")
    return _from_base64(document["image"])


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _from_base64(text: str) -> bytes:
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise ApiError("bad_base64", "found a data URI without ';base64,', expected data:image/…;base64,…")
    try:
        letters = "".join(text.split()).encode("ascii").translate(bytes.maketrans(b"-_", b"+/"))
        return binascii.a2b_base64(letters, strict_mode=True)
    except ValueError as error:
        # A lone surrogate in the message could not be sent back, hence ascii().
        raise ApiError("bad_base64", f"found invalid base64 ({ascii(str(error))[:120]}), expected padded base64") from None

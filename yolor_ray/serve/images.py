"""Take the encoded image out of a request: raw bytes, a multipart `file` or base64 in JSON.

Everything is bounded while it streams in: bytes, seconds, multipart parts and nesting. Bodies are never inflated.
"""

import asyncio
import binascii
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from yolor_ray.serve.problems import Problem

FORMS = 'image bytes (Content-Type: image/*), multipart/form-data with one part `file`, or JSON {"image": "<base64>"}'


async def read_image(request: Request, max_bytes: int, timeout_s: float) -> bytes:
    """Return the encoded image that a request carries.

    Args:
        request: its body is not read yet.
        max_bytes: largest body as it travels (base64 counts four bytes for three).
        timeout_s: longest time for the body to come in.

    Raises:
        Problem: the body is too large, too slow, empty, encoded, or not of a form that holds one image.
    """
    body = await _read_body(request, max_bytes, timeout_s)
    if not body:
        raise Problem("empty_image", f"found an empty body, expected {FORMS}")
    kind = request.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()
    if kind.startswith("image/") or kind == "application/octet-stream":
        return body
    if kind == "multipart/form-data":
        return await _from_multipart(request, body)
    if kind == "application/json":
        return _from_json(body)
    raise Problem("unsupported_media_type", f"found Content-Type {kind[:80]!r}, expected {FORMS}")


async def _read_body(request: Request, max_bytes: int, timeout_s: float) -> bytes:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise Problem("unsupported_encoding", f"found Content-Encoding {encoding[:80]!r}, expected none: images are compressed already")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > max_bytes:
        raise Problem("body_too_large", f"found a body of {declared[:20]} bytes, expected at most {max_bytes}")
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise Problem("body_too_large", f"found a body of more than {max_bytes} bytes, expected at most that")
    except TimeoutError:
        raise Problem("body_timeout", f"found {len(body)} bytes after {timeout_s:g} s, expected the whole body by then") from None
    return bytes(body)


class _InMemoryParser(MultiPartParser):
    # The body is in memory and bounded already; a second copy on disk would only be slower.
    spool_max_size = 2**62


async def _from_multipart(request: Request, body: bytes) -> bytes:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await _InMemoryParser(request.headers, stream(), max_files=1, max_fields=8, max_part_size=4096).parse()
    except MultiPartException as error:
        raise Problem("bad_multipart", f"{error.message} Expected multipart/form-data with one part `file`") from error
    upload = form.get("file")
    if not isinstance(upload, UploadFile):
        names = sorted({str(name)[:40] for name in form})
        raise Problem("bad_multipart", f"found parts {names}, expected one named 'file' with a file name")
    with upload.file as file:
        return file.read()


def _from_json(body: bytes) -> bytes:
    try:
        document = json.loads(body, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        fault = "nested too deep" if isinstance(error, RecursionError) else str(error)[:200]
        raise Problem("bad_json", f'found no valid JSON ({fault}), expected {{"image": "<base64>"}}') from None
    if not isinstance(document, Mapping) or set(document) != {"image"} or not isinstance(document["image"], str):
        found = sorted(str(key)[:40] for key in document)[:8] if isinstance(document, Mapping) else type(document).__name__
        raise Problem("bad_json", f"found {found}, expected an object with the one key 'image', a base64 string")
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
            raise Problem("bad_base64", "found a data URI without ';base64,', expected data:image/…;base64,…")
    try:
        letters = "".join(text.split()).encode("ascii").translate(bytes.maketrans(b"-_", b"+/"))
        return binascii.a2b_base64(letters, strict_mode=True)
    except ValueError as error:
        # A lone surrogate in the message could not be sent back, hence ascii().
        raise Problem("bad_base64", f"found invalid base64 ({ascii(str(error))[:120]}), expected padded base64") from None

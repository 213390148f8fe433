"""Tensors of the Open Inference Protocol: in JSON, or as bytes after the JSON (its extension `binary_tensor_data`).

The header Inference-Header-Content-Length of a body with bytes has the length of the JSON. Numbers are little-endian. An element of the
datatype BYTES has its length in front, four bytes.
"""

import json
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.responses import JSONResponse, Response

from yolor_ray.serve.http.errors import ApiError

JSON_LENGTH = "Inference-Header-Content-Length"
EXTENSION = "binary_tensor_data"
NUMBERS = {"FP32": "<f4", "INT64": "<i8"}
"""NumPy's names of the datatypes of numbers."""


@dataclass(frozen=True)
class Tensor:
    """Output of an inference."""

    name: str
    datatype: str
    """FP32, INT64, or BYTES, whose elements are texts here."""
    shape: tuple[int, ...]
    data: Sequence[Any]
    """Elements, flat, the last axis fastest."""

    def to_bytes(self) -> bytes:
        """Return the elements as bytes."""
        if self.datatype in NUMBERS:
            return np.array(self.data, NUMBERS[self.datatype]).tobytes()
        return b"".join(struct.pack("<I", len(element)) + element for element in (text.encode() for text in self.data))


def split_body(body: bytes, json_length: str | None) -> tuple[bytes, bytes]:
    """Return the JSON and the bytes after it; `json_length` is the header JSON_LENGTH, None without bytes."""
    if json_length is None:
        return body, b""
    if not json_length.isdecimal() or int(json_length[:20]) > len(body):
        raise ApiError(
            "bad_tensor", f"{JSON_LENGTH}: found {json_length[:20]!r}, expected a number up to {len(body)}, the bytes of the body"
        )
    return body[: int(json_length)], body[int(json_length) :]


def read_elements(data: bytes) -> list[bytes]:
    """Return the elements of a tensor of the datatype BYTES; raises ApiError if an element is cut."""
    elements: list[bytes] = []
    start = 0
    while start < len(data):
        end = start + 4 + int.from_bytes(data[start : start + 4], "little")
        if end > len(data) or start + 4 > len(data):
            expected = "four bytes with the length of each element, and the element"
            raise ApiError("bad_tensor", f"found {len(data)} bytes that end in element {len(elements)}, expected {expected}")
        elements.append(data[start + 4 : end])
        start = end
    return elements


def tensors_response(fields: Mapping[str, Any], tensors: Sequence[Tensor], as_bytes: Collection[str]) -> Response:
    """Return the response with the fields and with the tensors as `outputs`; those of the names in `as_bytes` follow the JSON as bytes."""
    outputs: list[dict[str, Any]] = []
    appended: list[bytes] = []
    for tensor in tensors:
        output = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if tensor.name in as_bytes:
            appended.append(tensor.to_bytes())
            outputs.append({**output, "parameters": {"binary_data_size": len(appended[-1])}})
        else:
            outputs.append({**output, "data": list(tensor.data)})
    document = {**fields, "outputs": outputs}
    if not appended:
        return JSONResponse(document)
    head = json.dumps(document).encode()
    return Response(b"".join([head, *appended]), headers={JSON_LENGTH: str(len(head))}, media_type="application/octet-stream")

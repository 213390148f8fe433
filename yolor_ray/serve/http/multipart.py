"""Extract the part `file` from a multipart/form-data body in memory.

Starlette's own parser copies each file into a temporary file, which stays open when the body ends too early.
"""

from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from yolor_ray.serve.http.errors import ApiError

MAX_PARTS = 8


@dataclass
class _Part:
    headers: dict[bytes, bytes] = field(default_factory=dict)
    chunks: list[bytes] = field(default_factory=list)

    @property
    def disposition(self) -> dict[bytes, bytes]:
        return parse_options_header(self.headers.get(b"content-disposition", b""))[1]


class _Reader:
    """Collector of the parts, by callbacks of the parser."""

    def __init__(self) -> None:
        self.parts: list[_Part] = []
        self.complete = False
        self._name, self._value = b"", b""

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_part_data": self._data,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.parts) == MAX_PARTS:
            raise ApiError("bad_multipart", f"found more than {MAX_PARTS} parts, expected one named 'file'")
        self.parts.append(_Part())

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self.parts[-1].headers[self._name.lower()] = self._value
        self._name, self._value = b"", b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].chunks.append(data[start:end])

    def _end(self) -> None:
        self.complete = True


def file_part(content_type: str, body: bytes) -> bytes:
    """Return the content of the part `file`; raises ApiError unless exactly one such part has a file name."""
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary:
        raise ApiError("bad_multipart", "found no boundary in Content-Type, expected multipart/form-data; boundary=…")
    reader = _Reader()
    try:
        parser = MultipartParser(boundary, reader.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise ApiError("bad_multipart", f"found a malformed multipart body ({str(error)[:200]})") from error
    if not reader.complete:
        raise ApiError("bad_multipart", "found a multipart body without its closing boundary")
    files = [part for part in reader.parts if part.disposition.get(b"name") == b"file" and b"filename" in part.disposition]
    if len(files) != 1:
        raise ApiError("bad_multipart", f"found {len(files)} parts named 'file' with a file name, expected one")
    return b"".join(files[0].chunks)

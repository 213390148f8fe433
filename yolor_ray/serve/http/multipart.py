"""Extract the parts `file` from a multipart/form-data body in memory.

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

    @property
    def is_file(self) -> bool:
        return self.disposition.get(b"name") == b"file" and b"filename" in self.disposition

    @property
    def content(self) -> bytes:
        return b"".join(self.chunks)


class _Reader:
    """Collector of at most `max_parts` parts, by callbacks of the parser; `code` is that of the error for more."""

    def __init__(self, max_parts: int, expected: str, code: str) -> None:
        self._max_parts, self._expected, self._code = max_parts, expected, code
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
        if len(self.parts) == self._max_parts:
            raise ApiError(self._code, f"found more than {self._max_parts} parts, expected {self._expected}")
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
    files = [part for part in _parts(content_type, body, MAX_PARTS, "one named 'file'", "bad_multipart") if part.is_file]
    if len(files) != 1:
        raise ApiError("bad_multipart", f"found {len(files)} parts named 'file' with a file name, expected one")
    return files[0].content


def file_parts(content_type: str, body: bytes, max_files: int) -> list[tuple[str, bytes]]:
    """Return file name and content of each part; raises ApiError unless all parts are named `file` and have a file name."""
    expected = f"1 to {max_files} parts named 'file', each with a file name"
    parts = _parts(content_type, body, max_files, expected, "too_many_images")
    if not parts or not all(part.is_file for part in parts):
        raise ApiError("bad_multipart", f"found {sum(part.is_file for part in parts)} such parts among {len(parts)}, expected {expected}")
    return [(part.disposition[b"filename"].decode("utf-8", "replace"), part.content) for part in parts]


def _parts(content_type: str, body: bytes, max_parts: int, expected: str, code: str) -> list[_Part]:
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary:
        raise ApiError("bad_multipart", "found no boundary in Content-Type, expected multipart/form-data; boundary=…")
    reader = _Reader(max_parts, expected, code)
    try:
        parser = MultipartParser(boundary, reader.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise ApiError("bad_multipart", f"found a malformed multipart body ({str(error)[:200]})") from error
    if not reader.complete:
        raise ApiError("bad_multipart", "found a multipart body without its closing boundary")
    return reader.parts

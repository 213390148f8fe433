"""Parse structs of Thrift's compact protocol, in which Parquet writes its footer and the headers of its pages.

pyarrow shows no header of a page, and its views of a column's metadata end the process when a hostile file contradicts itself.
Source: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

import struct
from typing import Any

MAX_FIELD, MAX_ITEMS = 63, 64
MAX_DEPTH = 16
"""Levels of nested structs and lists; Parquet's own structs have 7."""
TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)


class ThriftError(ValueError):
    """The bytes are no struct of the compact protocol."""


def parse_struct(data: memoryview, position: int = 0, max_items: int = MAX_ITEMS) -> tuple[dict[int, Any], int]:
    """Parse the struct at a position: its values by field number, nested structs alike, and the position after it.

    Args:
        data: bytes with the struct.
        position: first byte of the struct.
        max_items: longest list that is accepted: other parsers of the same bytes make room for all items before they read one.

    Raises:
        ThriftError: the bytes are no struct, end within it, nest it too deep, or have a longer list.

    """
    reader = _Reader(data, position, max_items)
    try:
        return reader.struct(0), reader.position
    except (IndexError, struct.error) as error:
        raise ThriftError(f"found {len(data)} bytes that end within a struct that begins at byte {position}") from error


class _Reader:
    def __init__(self, data: memoryview, position: int, max_items: int) -> None:
        self.data, self.position, self.max_items = data, position, max_items

    def struct(self, depth: int) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while header := self._byte():
            number = number + (header >> 4) if header >> 4 else self._zigzag()
            if not 0 < number <= MAX_FIELD:
                raise ThriftError(f"found field {number} at byte {self.position}, expected 1 to {MAX_FIELD}")
            kind = header & 15
            # A field of truth has its value in its type.
            fields[number] = kind == TRUE if kind in (TRUE, FALSE) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (I16, I32, I64):
            return self._zigzag()
        if kind == BINARY:
            return self._bytes(self._varint())
        if kind in (TRUE, FALSE, BYTE):
            return self._byte()
        if kind == DOUBLE:
            return struct.unpack("<d", self._bytes(8))[0]
        if depth >= MAX_DEPTH:
            raise ThriftError(f"found values over {MAX_DEPTH} levels deep")
        if kind == STRUCT:
            return self.struct(depth + 1)
        if kind in (LIST, SET):
            header = self._byte()
            size = header >> 4 if header >> 4 < 15 else self._varint()
            if size > self.max_items:
                raise ThriftError(f"found a list of {size} at byte {self.position}, expected at most {self.max_items}")
            return [self._value(header & 15, depth + 1) for _ in range(size)]
        # Parquet has no maps.
        raise ThriftError(f"found a value of type {kind} at byte {self.position}, expected one of Parquet's")

    def _byte(self) -> int:
        byte = self.data[self.position]
        self.position += 1
        return byte

    def _bytes(self, size: int) -> bytes:
        if size > len(self.data) - self.position:
            raise ThriftError(f"found a size of {size} at byte {self.position}, and {len(self.data) - self.position} bytes after it")
        self.position += size
        return bytes(self.data[self.position - size : self.position])

    def _varint(self) -> int:
        value = shift = 0
        while shift < 70:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
        raise ThriftError(f"found a number of over 10 bytes at byte {self.position}")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

"""Find the columns of a shard in its footer, and refuse everything in which a small file could stand for a large table.

A shard is plain: no compression, no dictionary, values as they are. Decoded, its rows take a small multiple of their bytes. A shard that a
stranger made may say otherwise in the footer and in the header of each page, and both are read here before pyarrow acts on them.
Source: https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

import itertools
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from yolor_ray.data.shards.arrow import SCHEMA
from yolor_ray.data.shards.thrift import MAX_ITEMS, ThriftError, parse_struct
from yolor_ray.errors import DataError

MAGIC = b"PAR1"
TRAILER_BYTES = 8
"""Length of the footer and magic bytes, after the footer."""
UNCOMPRESSED = DATA_PAGE = PLAIN = 0
RLE = 3
"""Encoding of the levels, which say where lists begin and which of them are empty."""
MIN_BYTES_PER_VALUE = 1
MAX_EMPTY_VALUES = 1 << 20
"""Values of a column in a row group that may take no byte: absent ones, and empty lists."""
MAX_ROW_GROUPS = 1 << 16


@dataclass(frozen=True)
class Footer:
    """Content of a shard's footer."""

    metadata: pq.FileMetaData
    """The footer for pyarrow. Its views of row groups and columns are not used: they end the process if the footer contradicts itself."""
    row_groups: tuple[int, ...]
    """Rows of each row group."""
    chunks: tuple[tuple[tuple[int, int], ...], ...]
    """First byte, and byte after the last, of each column in each row group."""


def parse_footer(data: pa.Buffer, file_bytes: int) -> Footer:
    """Parse a footer with its trailer.

    Args:
        data: end of the file, from the footer on.
        file_bytes: size of the file.

    Raises:
        DataError: the footer is none that packing writes.

    """
    view = memoryview(data).cast("B")
    try:
        if bytes(view[-4:]) != MAGIC or int.from_bytes(view[-8:-4], "little") != len(view) - TRAILER_BYTES:
            raise ThriftError(f"no trailer with {MAGIC!r} and the footer's size")
        content, _ = parse_struct(view, max_items=MAX_ROW_GROUPS)
        groups = content[4]
        end = file_bytes - len(view)
        chunks = tuple(tuple(_chunk(column[3], end) for column in _items(group, 1, len(SCHEMA))) for group in groups)
        _items(content, 2, MAX_ITEMS, exactly=False)
        _items(content, 5, MAX_ITEMS, exactly=False)
        row_groups = tuple(group[3] for group in groups)
        if not all(type(rows) is int and rows > 0 for rows in row_groups):
            raise ThriftError(f"row groups of {row_groups[:8]} rows")
        metadata = pq.read_metadata(pa.BufferReader(data))
        if not metadata.schema.to_arrow_schema().equals(SCHEMA):
            raise ThriftError("other columns")
    except (ThriftError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"found a footer that packing does not write ({error}), expected one by jobs/pack.py") from error
    return Footer(metadata, row_groups, chunks)


def _items(fields: dict[int, Any], number: int, size: int, exactly: bool = True) -> list[Any]:
    """Return a list among the fields of a struct, which has `size` items, or at most as many."""
    items = fields[number]
    if not isinstance(items, list) or len(items) > size or (exactly and len(items) != size):
        raise ThriftError(f"field {number} with {len(items)} items, expected {size}")
    return items


def _chunk(column: dict[int, Any], end: int) -> tuple[int, int]:
    """Return the range of a column's pages from its metadata; `end` is the byte after the last page of the file."""
    codec, size, start = column[4], column[7], column[9]
    if codec != UNCOMPRESSED or 11 in column:
        raise ThriftError(f"column {column[3]} compressed or with a dictionary")
    if not all(type(number) is int for number in (size, start)) or size <= 0 or not len(MAGIC) <= start <= end - size:
        raise ThriftError(f"column {column[3]} of {size} bytes from byte {start} on, in a file whose footer begins at byte {end}")
    return start, start + size


def check_pages(data: pa.Buffer, rows: int, name: str) -> None:
    """Refuse pages of a column in a row group that are not plain, or claim more values than their bytes can hold.

    Args:
        data: all pages of the column.
        rows: rows of the row group.
        name: name of the column, for errors.

    Raises:
        DataError: a page is compressed, has another encoding, or claims more values than its bytes can hold.

    """
    view, position, values = memoryview(data).cast("B"), 0, 0
    try:
        for number in itertools.count():
            if position == len(view):
                break
            header, position = parse_struct(view, position)
            size, page = header[3], header[5]
            if (header[1], page[2], page[3], page[4]) != (DATA_PAGE, PLAIN, RLE, RLE) or header[2] != size:
                raise ThriftError(f"page {number} of type {header[1]}, encoding {page[2]}, {size} bytes for {header[2]}")
            values += page[1]
            position += size
            if page[1] < 0 or not 0 <= size <= len(view) - position + size:
                raise ThriftError(f"page {number} of {size} bytes and {page[1]} values")
    except (ThriftError, KeyError, TypeError) as error:
        raise DataError(f"column {name}: found a page that packing does not write ({error}), expected plain pages") from error
    if values > rows + MAX_EMPTY_VALUES + len(view) // MIN_BYTES_PER_VALUE:
        raise DataError(f"column {name}: found {values} values in {len(view)} bytes, expected fewer: the pages inflate")

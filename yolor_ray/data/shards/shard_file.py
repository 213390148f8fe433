"""Write shard files, and read them, verified by the SHA-256 of the footer and of each row group's byte range.

A read returns the bytes that were written or raises, also when an object is overwritten between two reads. A row group takes one
ranged read, and its bytes are not copied before Parquet decodes them.
"""

import functools
import hashlib
import io
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from yolor_ray.data.shards.arrow import SCHEMA, to_table
from yolor_ray.data.shards.parquet_layout import TRAILER_BYTES, Footer, check_pages, parse_footer
from yolor_ray.data.shards.records import Record
from yolor_ray.errors import DataError, IntegrityError

NAME = re.compile(r"part-\d{5,}-[0-9a-f]{12}\.parquet")
"""Names of shards: no other name, such as one with a folder, is read."""
CONTENT_KEY = "yolor_ray.content_sha256"
"""Metadata key of the content hash in a shard's footer."""
ROWS_PER_GROUP = 64
GROUP_BYTES = 32 * 2**20
"""Encoded image bytes after which a row group ends early, so that large photos also stream in small pieces."""
MAX_FOOTER_BYTES, MAX_FOOTER_BYTES_PER_GROUP = 1 << 16, 1 << 14
"""Largest footer of a shard, beside what each row group adds: several times the size of real ones."""


PARSING = threading.Lock()


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a dataset."""

    name: str
    """File name inside the dataset's folder."""
    rows: int
    """Images in the file."""
    row_groups: tuple[int, ...]
    """Images per row group."""
    bytes: int
    """Size of the file, in bytes."""
    sha256: str
    """Hex digest of the file."""
    footer_bytes: int
    """Size of the Parquet footer with its trailer, at the end of the file."""
    footer_sha256: str
    """Hex digest of the footer with its trailer."""
    row_group_sha256: tuple[str, ...]
    """Hex digest of the byte range of each row group."""


def encode_shard(records: Iterable[Record], index: int) -> tuple[pa.Buffer, Shard]:
    """Encode records as a Parquet file, and describe the file; `index` is its position in the dataset.

    Columns are not compressed, because images are encoded already. Every page carries a checksum. The footer carries a hash of the
    content: without it, different shards of fixed-width columns would have the same footer.
    """
    content_hash = hashlib.sha256()
    sink = pa.BufferOutputStream()
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False, "write_page_checksum": True}
    with pq.ParquetWriter(sink, SCHEMA, **options) as writer:
        for group in _split_into_groups(records):
            rows = to_table(group)
            for buffer in _content(rows):
                content_hash.update(buffer)
            writer.write_table(rows, row_group_size=len(group))
        writer.add_key_value_metadata({CONTENT_KEY: content_hash.hexdigest()})
    data = sink.getvalue()
    return data, describe_shard(data, index)


def _content(rows: pa.Table) -> Iterator[pa.Buffer | bytes]:
    """Yield the buffers of a table without a copy, each after its length, so that the hash fixes the borders between buffers."""
    for buffer in (buffer for column in rows.columns for chunk in column.chunks for buffer in chunk.buffers() if buffer is not None):
        yield buffer.size.to_bytes(8, "little")
        yield buffer


def _split_into_groups(records: Iterable[Record]) -> Iterator[list[Record]]:
    group: list[Record] = []
    size = 0
    for record in records:
        group.append(record)
        size += len(record.image)
        if len(group) == ROWS_PER_GROUP or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def describe_shard(data: pa.Buffer, index: int) -> Shard:
    """Describe a Parquet file that was just written; `index` is its position in the dataset."""
    footer_bytes = int.from_bytes(data.slice(data.size - TRAILER_BYTES, 4).to_pybytes(), "little") + TRAILER_BYTES
    footer = parse_footer(data.slice(data.size - footer_bytes), data.size)
    ranges = [byte_range(footer, group) for group in range(len(footer.chunks))]
    digest = _sha256(data)
    return Shard(
        name=f"part-{index:05d}-{digest[:12]}.parquet",
        rows=sum(footer.row_groups),
        row_groups=footer.row_groups,
        bytes=data.size,
        sha256=digest,
        footer_bytes=footer_bytes,
        footer_sha256=_sha256(data.slice(data.size - footer_bytes)),
        row_group_sha256=tuple(_sha256(data.slice(start, end - start)) for start, end in ranges),
    )


def shard_from_json(content: dict[str, Any]) -> Shard:
    """Read the description of a shard from JSON.

    Raises:
        TypeError, KeyError: a field is missing or unknown.
        ValueError: a value is not possible, or the name could lead to another folder.

    """
    shard = Shard(**{**content, **{name: tuple(content[name]) for name in ("row_groups", "row_group_sha256")}})
    if not isinstance(shard.name, str) or not NAME.fullmatch(shard.name):
        raise ValueError(f"found shard name {shard.name!r}, expected one such as part-00000-0123456789ab.parquet")
    numbers = (*shard.row_groups, shard.rows, shard.bytes, shard.footer_bytes)
    if not all(type(number) is int and number > 0 for number in numbers):
        raise ValueError(f"found {numbers} as rows and sizes of {shard.name}, expected whole numbers from 1")
    if not all(isinstance(digest, str) for digest in (*shard.row_group_sha256, shard.sha256, shard.footer_sha256)):
        raise ValueError(f"found hashes of {shard.name} that are no text")
    if shard.rows != sum(shard.row_groups):
        raise ValueError(f"found {shard.rows} rows and row groups of {sum(shard.row_groups)} rows in {shard.name}")
    if len(shard.row_groups) != len(shard.row_group_sha256):
        raise ValueError(f"{len(shard.row_group_sha256)} hashes for {len(shard.row_groups)} row groups of {shard.name}")
    if not shard.footer_bytes < min(shard.bytes, MAX_FOOTER_BYTES + MAX_FOOTER_BYTES_PER_GROUP * len(shard.row_groups)):
        raise ValueError(f"found a footer of {shard.footer_bytes} bytes in {shard.name} of {shard.bytes} bytes, expected a smaller one")
    return shard


def read_footer(file: pa.NativeFile, shard: Shard) -> Footer:
    """Read and verify the footer.

    Raises:
        IntegrityError: the file has another size, or the footer another SHA-256, than described.
        DataError: the footer is none that packing writes.

    """
    data = verify_footer(file, shard).to_pybytes()
    # Threads that read the same footer wait for the first of them: parsing a thousand row groups takes a second.
    with PARSING:
        footer = _parse_once(data, shard.bytes)
    if footer.row_groups != shard.row_groups:
        raise DataError(f"found row groups of {list(footer.row_groups)[:8]} rows, expected {list(shard.row_groups)[:8]} as in dataset.json")
    return footer


@functools.lru_cache(maxsize=16)
def _parse_once(data: bytes, file_bytes: int) -> Footer:
    return parse_footer(pa.py_buffer(data), file_bytes)


def verify_footer(file: pa.NativeFile, shard: Shard) -> pa.Buffer:
    """Read the bytes of the footer with its trailer.

    Raises:
        IntegrityError: the file has another size, or the footer another SHA-256, than described.

    """
    return _verified(file, shard.bytes - shard.footer_bytes, shard.bytes, shard, shard.footer_sha256, "a footer")


def read_row_group(file: pa.NativeFile, footer: Footer, index: int, shard: Shard) -> pa.Table:
    """Read and verify one row group by a single ranged read.

    Raises:
        IntegrityError: the file has another size, or the row group another SHA-256, than described.
        DataError: a page is none that packing writes.

    """
    start, end = byte_range(footer, index)
    data = _verified(file, start, end, shard, shard.row_group_sha256[index], "content")
    return _decode(_RangeFile([(start, data)], shard.bytes), footer, index)


def read_columns(file: pa.NativeFile, footer: Footer, index: int, shard: Shard, columns: Sequence[str]) -> pa.Table:
    """Read some columns of one row group, verified by the checksums of their pages, by one ranged read for neighbouring columns.

    Raises:
        IntegrityError: the file has another size than described.
        DataError: a page is none that packing writes.

    """
    check_size(file, shard)
    ranges: list[list[int]] = []
    for start, end in sorted(footer.chunks[index][SCHEMA.names.index(name)] for name in columns):
        if ranges and ranges[-1][1] == start:
            ranges[-1][1] = end
        else:
            ranges.append([start, end])
    buffers = []
    for start, end in ranges:
        file.seek(start)
        buffers.append((start, file.read_buffer(end - start)))
    return _decode(_RangeFile(buffers, shard.bytes), footer, index, columns)


def _decode(file: "_RangeFile", footer: Footer, index: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Decode columns of a row group, or all columns, after a check that no page inflates."""
    for column in range(len(SCHEMA)) if columns is None else map(SCHEMA.names.index, columns):
        start, end = footer.chunks[index][column]
        check_pages(file.read_range(start, end), footer.row_groups[index], SCHEMA.names[column])
    options = {"metadata": footer.metadata, "page_checksum_verification": columns is not None}
    # Without pre-buffering: Arrow's own threads would hold Python objects, and abort a process that ends meanwhile.
    with pa.PythonFile(file, mode="r") as range_file:
        return pq.ParquetFile(range_file, pre_buffer=False, **options).read_row_group(index, columns=columns, use_threads=False)


def check_size(file: pa.NativeFile, shard: Shard) -> None:
    """Check the size of the file.

    Raises:
        IntegrityError: the file has another size than described.

    """
    if file.size() != shard.bytes:
        raise _overwritten(f"{file.size()} bytes", str(shard.bytes))


def _verified(file: pa.NativeFile, start: int, end: int, shard: Shard, expected: str, content: str) -> pa.Buffer:
    """Read a range of bytes and check its SHA-256; `content` names the range in errors."""
    check_size(file, shard)
    file.seek(start)
    data = file.read_buffer(end - start)
    if data.size != end - start:
        raise _overwritten(f"{data.size} bytes from byte {start} on", str(end - start))
    digest = _sha256(data)
    if digest != expected:
        raise _overwritten(f"{content} with SHA-256 {digest}", expected)
    return data


def _overwritten(found: str, expected: str) -> IntegrityError:
    reason = "the object was overwritten or damaged; pack again into another folder"
    return IntegrityError(f"found {found}, expected {expected} as in dataset.json: {reason}")


def _sha256(data: pa.Buffer) -> str:
    return hashlib.sha256(data).hexdigest()


def byte_range(footer: Footer, index: int) -> tuple[int, int]:
    """Return the first byte of a row group in the file, and the byte after its last."""
    return min(start for start, _ in footer.chunks[index]), max(end for _, end in footer.chunks[index])


class _RangeFile(io.RawIOBase):
    """A file of which only some ranges are in memory; pyarrow takes slices of the ranges without a copy."""

    def __init__(self, ranges: Sequence[tuple[int, pa.Buffer]], size: int) -> None:
        """Take the first byte and the content of each range, and the size of the file."""
        self._ranges, self._size = ranges, size
        self._position = 0

    def read_range(self, start: int, end: int) -> pa.Buffer:
        """Return bytes; fewer where their range ends before."""
        for first, data in self._ranges:
            if first <= start < first + data.size:
                return data.slice(start - first, max(end - start, 0))
        return pa.py_buffer(b"")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def read_buffer(self, size: int) -> pa.Buffer:
        data = self.read_range(self._position, self._position + size)
        self._position += data.size
        return data

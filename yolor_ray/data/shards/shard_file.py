"""Read shard files, verified by the SHA-256 of the footer and of each row group's byte range.

A read returns the bytes that were written or raises, also when an object is overwritten between two reads. A row group takes one
ranged read, and its bytes are not copied before Parquet decodes them.
"""

import hashlib
import io
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from yolor_ray.errors import IntegrityError

TRAILER_BYTES = 8
"""Length of the footer and magic bytes, after the footer."""


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


def describe_shard(data: pa.Buffer, index: int) -> Shard:
    """Describe a Parquet file that was just written; `index` is its position in the dataset."""
    footer = pq.read_metadata(pa.BufferReader(data))
    groups = range(footer.num_row_groups)
    ranges = [byte_range(footer, group) for group in groups]
    footer_bytes = footer.serialized_size + TRAILER_BYTES
    digest = _sha256(data)
    return Shard(
        name=f"part-{index:05d}-{digest[:12]}.parquet",
        rows=footer.num_rows,
        row_groups=tuple(footer.row_group(group).num_rows for group in groups),
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
        ValueError: the row groups and their hashes differ in number.

    """
    shard = Shard(**{**content, **{name: tuple(content[name]) for name in ("row_groups", "row_group_sha256")}})
    if len(shard.row_groups) != len(shard.row_group_sha256):
        raise ValueError(f"{len(shard.row_group_sha256)} hashes for {len(shard.row_groups)} row groups of {shard.name}")
    return shard


def read_footer(file: pa.NativeFile, shard: Shard) -> pq.FileMetaData:
    """Read and verify the footer.

    Raises:
        IntegrityError: the file has another size, or the footer another SHA-256, than described.

    """
    start = shard.bytes - shard.footer_bytes
    return pq.read_metadata(pa.BufferReader(_verified(file, start, shard.bytes, shard, shard.footer_sha256, "a footer")))


def read_row_group(file: pa.NativeFile, footer: pq.FileMetaData, index: int, shard: Shard) -> pa.Table:
    """Read and verify one row group by a single ranged read.

    Raises:
        IntegrityError: the file has another size, or the row group another SHA-256, than described.

    """
    start, end = byte_range(footer, index)
    data = _verified(file, start, end, shard, shard.row_group_sha256[index], "content")
    # Without pre-buffering: Arrow's own threads would hold Python objects, and abort a process that ends meanwhile.
    with pa.PythonFile(_RangeFile(data, start, shard.bytes), mode="r") as range_file:
        return pq.ParquetFile(range_file, metadata=footer, pre_buffer=False).read_row_group(index, use_threads=False)


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


def byte_range(footer: pq.FileMetaData, index: int) -> tuple[int, int]:
    """Return the first byte of a row group in the file, and the byte after its last."""
    group = footer.row_group(index)
    columns = [group.column(number) for number in range(footer.num_columns)]
    starts = [column.dictionary_page_offset or column.data_page_offset for column in columns]
    return min(starts), max(start + column.total_compressed_size for start, column in zip(starts, columns, strict=True))


class _RangeFile(io.RawIOBase):
    """A file of which only one range is in memory; pyarrow takes slices of the range without a copy."""

    def __init__(self, data: pa.Buffer, start: int, size: int) -> None:
        self._data, self._start, self._size = data, start, size
        self._position = 0

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
        data = self._data.slice(self._position - self._start, size)
        self._position += data.size
        return data

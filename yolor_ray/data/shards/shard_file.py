"""Read shards, whose bytes are known beforehand by the SHA-256 of the footer and of each row group's byte range.

What is read is what was written or an error, also when an object is overwritten between two reads; a row group takes one
ranged read, and nothing of it is copied before Parquet decodes it.
"""

import hashlib
import io
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from yolor_ray.errors import IntegrityError

TRAILER_BYTES = 8
"""After the footer: its length and the magic."""


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a data set."""

    name: str
    """File name inside the data set's folder."""
    rows: int
    """Images in it."""
    row_groups: tuple[int, ...]
    """Images per row group."""
    bytes: int
    """Size of the file."""
    sha256: str
    """Hex digest of the file."""
    footer_bytes: int
    """Size of the file's end: the Parquet footer with its trailer."""
    footer_sha256: str
    """Hex digest of this end."""
    row_group_sha256: tuple[str, ...]
    """Hex digest of the byte range of each row group."""


def describe_shard(data: pa.Buffer, part: int) -> Shard:
    """Return the description of a Parquet file that was just written."""
    footer = pq.read_metadata(pa.BufferReader(data))
    groups = range(footer.num_row_groups)
    ranges = [byte_range(footer, index) for index in groups]
    footer_bytes = footer.serialized_size + TRAILER_BYTES
    digest = _sha256(data)
    return Shard(
        name=f"part-{part:05d}-{digest[:12]}.parquet",
        rows=footer.num_rows,
        row_groups=tuple(footer.row_group(index).num_rows for index in groups),
        bytes=data.size,
        sha256=digest,
        footer_bytes=footer_bytes,
        footer_sha256=_sha256(data.slice(data.size - footer_bytes)),
        row_group_sha256=tuple(_sha256(data.slice(start, end - start)) for start, end in ranges),
    )


def shard_from_json(content: dict) -> Shard:
    """Return the shard whose fields were written as JSON.

    Raises:
        TypeError, KeyError: a field is missing or unknown.
        ValueError: not every row group has a hash.

    """
    shard = Shard(**{**content, **{name: tuple(content[name]) for name in ("row_groups", "row_group_sha256")}})
    if len(shard.row_groups) != len(shard.row_group_sha256):
        raise ValueError(f"{len(shard.row_group_sha256)} hashes for {len(shard.row_groups)} row groups of {shard.name}")
    return shard


def read_footer(file: pa.NativeFile, shard: Shard) -> pq.FileMetaData:
    """Return the footer.

    Raises:
        DamagedError: the file is of another size, or its end has another SHA-256.

    """
    start = shard.bytes - shard.footer_bytes
    return pq.read_metadata(pa.BufferReader(_verified(file, start, shard.bytes, shard, shard.footer_sha256, "a footer")))


def read_row_group(file: pa.NativeFile, footer: pq.FileMetaData, index: int, shard: Shard) -> pa.Table:
    """Return one row group by a single ranged read.

    Raises:
        DamagedError: the file is of another size, or this part of it has another SHA-256.

    """
    start, end = byte_range(footer, index)
    data = _verified(file, start, end, shard, shard.row_group_sha256[index], "content")
    # Without reading ahead, as Arrow's own threads would hold Python objects and abort a process that ends meanwhile.
    with pa.PythonFile(_Range(data, start, shard.bytes), mode="r") as part:
        return pq.ParquetFile(part, metadata=footer, pre_buffer=False).read_row_group(index, use_threads=False)


def check_size(file: pa.NativeFile, shard: Shard) -> None:
    """Raise DamagedError unless the file is as long as it was."""
    if file.size() != shard.bytes:
        raise _overwritten(f"{file.size()} bytes", str(shard.bytes))


def _verified(file: pa.NativeFile, start: int, end: int, shard: Shard, expected: str, what: str) -> pa.Buffer:
    check_size(file, shard)
    file.seek(start)
    data = file.read_buffer(end - start)
    if data.size != end - start:
        raise _overwritten(f"{data.size} bytes from byte {start} on", str(end - start))
    found = _sha256(data)
    if found != expected:
        raise _overwritten(f"{what} with SHA-256 {found}", expected)
    return data


def _overwritten(found: str, expected: str) -> IntegrityError:
    what = "the object was overwritten or damaged; pack again into another folder"
    return IntegrityError(f"found {found}, expected {expected} as in dataset.json: {what}")


def _sha256(data: pa.Buffer) -> str:
    return hashlib.sha256(data).hexdigest()


def byte_range(footer: pq.FileMetaData, index: int) -> tuple[int, int]:
    """Return where a row group starts and ends in the file."""
    group = footer.row_group(index)
    columns = [group.column(number) for number in range(footer.num_columns)]
    starts = [column.dictionary_page_offset or column.data_page_offset for column in columns]
    return min(starts), max(start + column.total_compressed_size for start, column in zip(starts, columns, strict=True))


class _Range(io.RawIOBase):
    """A file of which only one range is there; pyarrow takes slices of it."""

    def __init__(self, data: pa.Buffer, start: int, size: int) -> None:
        self._data, self._start, self._size = data, start, size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read_buffer(self, size: int) -> pa.Buffer:
        found = self._data.slice(self._at - self._start, size)
        self._at += found.size
        return found

"""Read torch's zip container: a pickle and one entry of raw bytes per storage, all stored uncompressed.

The size of an entry is checked before the entry is read, and all entries together cannot be larger than the file.
"""

import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch

from yolor_ray.errors import WeightsError
from yolor_ray.model.upstream.pickles import GlobalName, ObjectRecord, PersistentId, read_pickle

MAX_PICKLE_BYTES = 8 * 2**20
"""Maximum size of a container's pickle in bytes; pickles of upstream checkpoints have less than a tenth of the limit."""
DAMAGE_ERRORS: tuple[type[Exception], ...] = (
    *(EOFError, IndexError, KeyError, OSError, OverflowError, RuntimeError, ValueError),
    *(struct.error, zipfile.BadZipFile, zlib.error),
)
"""Exceptions that Python's zip reader raises for damaged files."""
DTYPES = {
    **{"FloatStorage": "f4", "HalfStorage": "f2", "DoubleStorage": "f8", "BFloat16Storage": "u2"},
    **{"LongStorage": "i8", "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "u1"},
}
"""NumPy dtype, without byte order, of the numbers in each type of storage."""


@dataclass(frozen=True)
class TensorLocation:
    """Location of a tensor's numbers in a storage; offset and strides are counted in numbers, not in bytes."""

    storage_type: str
    storage_key: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements of the tensor."""
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        """Minimum number of elements of the storage."""
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        return self.offset + (last + 1 if self.numel else 0)


@dataclass(frozen=True)
class Archive:
    """An open container."""

    url: str
    file: zipfile.ZipFile
    root: str
    """Common prefix of the names of all entries."""
    byte_order: str
    """Byte order of the numbers, < or >."""

    def read_pickle(self) -> Any:
        """Return the content of the container's pickle; see `pickles.read_pickle`."""
        size = self._size("data.pkl")
        if size > MAX_PICKLE_BYTES:
            raise WeightsError(f"{self.url}: found a data.pkl of {size} bytes, expected at most {MAX_PICKLE_BYTES}")
        return read_pickle(f"{self.url}: data.pkl", BytesIO(self._read("data.pkl")))

    def check_tensors(self, tensors: Mapping[str, TensorLocation]) -> None:
        """Check each tensor against its storage, and the size of all tensors together against the file.

        Raises:
            WeightsError: a tensor reaches beyond its storage, or all tensors have more bytes than the file.
        """
        for name, location in tensors.items():
            itemsize, size = np.dtype(DTYPES[location.storage_type]).itemsize, self._size(f"data/{location.storage_key}")
            if location.end * itemsize > size:
                raise WeightsError(
                    f"{self.url}: {name!r}: found a storage of {size} bytes, expected {location.end * itemsize} "
                    f"for shape {location.shape} from number {location.offset}"
                )
        total = sum(location.numel * np.dtype(DTYPES[location.storage_type]).itemsize for location in tensors.values())
        file_bytes = sum(info.file_size for info in self.file.infolist())
        if total > file_bytes:
            raise WeightsError(f"{self.url}: found tensors of {total} bytes in a file that holds {file_bytes}, expected no more than that")

    def read_tensor(self, name: str, location: TensorLocation) -> torch.Tensor:
        """Return a tensor as float32; `check_tensors` has accepted its location.

        Raises:
            WeightsError: the storage is damaged, or a number is not finite.
        """
        dtype = np.dtype(f"{self.byte_order}{DTYPES[location.storage_type]}")
        count, start = location.end - location.offset, location.offset * dtype.itemsize
        flat = np.frombuffer(self._read(f"data/{location.storage_key}"), dtype, count=count, offset=start)
        if location.storage_type == "BFloat16Storage":
            flat = (flat.astype(np.uint32) << 16).view(np.float32)
        strides = [stride * flat.itemsize for stride in location.strides]
        values = np.lib.stride_tricks.as_strided(flat, location.shape, strides)
        tensor = torch.from_numpy(values.astype(np.float32, order="C"))
        if not tensor.isfinite().all():
            raise WeightsError(f"{self.url}: {name!r}: found NaN or infinite numbers, expected finite ones")
        return tensor

    def _size(self, entry: str) -> int:
        with _report_damage(self.url):
            return self.file.getinfo(self.root + entry).file_size

    def _read(self, entry: str) -> bytes:
        with _report_damage(self.url):
            data, size = self.file.read(self.root + entry), self._size(entry)
            if len(data) != size:
                raise EOFError(f"{entry} has {len(data)} of {size} bytes")
            return data


def open_archive(url: str, data: bytes) -> Archive:
    """Return the container in a file's bytes.

    Raises:
        WeightsError: the file is truncated, compressed, or was not written by torch.
    """
    if not zipfile.is_zipfile(BytesIO(data)):
        raise WeightsError(f"{url}: found {len(data)} bytes that begin as a torch checkpoint, but it is truncated: its end is missing")
    with _report_damage(url):
        file = zipfile.ZipFile(BytesIO(data))
        entries = file.infolist()
    names = [info.filename for info in entries]
    roots = [name.removesuffix("data.pkl") for name in names if re.fullmatch(r"([^/]*/)?data\.pkl", name)]
    if len(roots) != 1:
        raise WeightsError(f"{url}: found a zip archive of {', '.join(names[:3]) or 'nothing'} …, expected one that torch.save wrote")
    if any(info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 for info in entries):
        raise WeightsError(f"{url}: found a compressed or encrypted zip archive, expected a plain one, as torch.save writes it")
    if sum(info.file_size for info in entries) > len(data):
        raise WeightsError(f"{url}: found entries that overlap or exceed the file's {len(data)} bytes, expected each to have its own")
    with _report_damage(url):
        is_big_endian = f"{roots[0]}byteorder" in names and file.read(f"{roots[0]}byteorder") == b"big"
    return Archive(url, file, roots[0], ">" if is_big_endian else "<")


@contextmanager
def _report_damage(url: str) -> Iterator[None]:
    """Turn the exceptions of a damaged file into a WeightsError."""
    try:
        yield
    except DAMAGE_ERRORS as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"{url}: found a torch checkpoint that is damaged ({reason}), expected a complete zip archive; download or copy the file again"
        ) from error


def parse_tensor(name: str, record: ObjectRecord) -> TensorLocation:
    """Return the location of a tensor's numbers, from the record of the torch call that would rebuild the tensor.

    Args:
        name: URL of the file and name of the tensor, for messages.
        record: a record of `torch._utils._rebuild_tensor_v2`.

    Raises:
        WeightsError: the arguments of the call are invalid, or the tensor's numbers overlap.
    """
    match record.arguments:
        case (PersistentId(("storage", GlobalName(storage_class), str(key), _, *_)), offset, tuple(shape), tuple(strides), *_):
            sizes = (offset, *shape, *strides)
        case _:
            raise WeightsError(f"{name}: found a tensor without storage, offset, shape and strides, expected all of them")
    if len(shape) != len(strides) or len(shape) > 8 or not all(type(n) is int and 0 <= n < 2**40 for n in sizes):
        # The message shows no value: the text of nested values can be endless.
        raise WeightsError(f"{name}: found a tensor whose offset, shape or strides are no sizes, expected whole numbers from 0 on")
    location = TensorLocation(storage_class.split(".")[-1], key, offset, shape, strides)
    if location.storage_type not in DTYPES:
        raise WeightsError(f"{name}: found a tensor in a {location.storage_type}, expected one of {', '.join(DTYPES)}")
    if _overlaps(location):
        raise WeightsError(f"{name}: found shape {shape} with strides {strides}, whose numbers overlap, expected each number once")
    return location


def _overlaps(location: TensorLocation) -> bool:
    extent = 1
    for stride, size in sorted(zip(location.strides, location.shape, strict=True)):
        if size > 1:
            if stride < extent:
                return True
            extent += stride * (size - 1)
    return False

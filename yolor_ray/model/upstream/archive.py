"""Read torch's zip container: a pickle beside one entry of raw bytes per storage, all stored uncompressed.

No entry is read before its size is known to be there, and together they cannot be more than the file holds.
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
from yolor_ray.model.upstream.pickles import Made, Named, Stored, read_pickle

LARGEST_PICKLE = 8 * 2**20
"""Bytes; the pickles of published checkpoints have less than a tenth of it."""
DAMAGE: tuple[type[Exception], ...] = (
    *(EOFError, IndexError, KeyError, OSError, OverflowError, RuntimeError, ValueError),
    *(struct.error, zipfile.BadZipFile, zlib.error),
)
"""What Python's zip reader raises for damaged files."""
NUMBERS = {
    **{"FloatStorage": "f4", "HalfStorage": "f2", "DoubleStorage": "f8", "BFloat16Storage": "u2"},
    **{"LongStorage": "i8", "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "u1"},
}
"""How the numbers of each kind of storage are stored, in NumPy's words."""


@dataclass(frozen=True)
class StoredTensor:
    """Say where in which storage a tensor's numbers lie; counts and steps are in numbers, not in bytes."""

    kind: str
    key: str
    offset: int
    shape: tuple[int, ...]
    steps: tuple[int, ...]

    @property
    def numbers(self) -> int:
        """How many numbers the tensor has."""
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        """How many numbers its storage must have at least."""
        last = sum((size - 1) * step for size, step in zip(self.shape, self.steps, strict=True))
        return self.offset + (last + 1 if self.numbers else 0)


@dataclass(frozen=True)
class Archive:
    """Hold an open container: `order` is < or >, the byte order of its numbers."""

    place: str
    file: zipfile.ZipFile
    root: str
    order: str

    def read_pickle(self) -> Any:
        """Return what the container's pickle describes."""
        size = self._size("data.pkl")
        if size > LARGEST_PICKLE:
            raise WeightsError(f"{self.place}: found a data.pkl of {size} bytes, expected at most {LARGEST_PICKLE}")
        return read_pickle(f"{self.place}: data.pkl", BytesIO(self._read("data.pkl")))

    def check(self, tensors: Mapping[str, StoredTensor]) -> None:
        """Raise WeightsError if a tensor reaches beyond its storage, or all of them beyond the file."""
        for name, tensor in tensors.items():
            width, size = np.dtype(NUMBERS[tensor.kind]).itemsize, self._size(f"data/{tensor.key}")
            if tensor.end * width > size:
                raise WeightsError(
                    f"{self.place}: {name!r}: found a storage of {size} bytes, expected {tensor.end * width} "
                    f"for shape {tensor.shape} from number {tensor.offset}"
                )
        total = sum(tensor.numbers * np.dtype(NUMBERS[tensor.kind]).itemsize for tensor in tensors.values())
        held = sum(info.file_size for info in self.file.infolist())
        if total > held:
            raise WeightsError(f"{self.place}: found tensors of {total} bytes in a file that holds {held}, expected no more than that")

    def tensor(self, name: str, stored: StoredTensor) -> torch.Tensor:
        """Return the numbers of a tensor that was checked, as float32."""
        dtype = np.dtype(f"{self.order}{NUMBERS[stored.kind]}")
        flat = np.frombuffer(
            self._read(f"data/{stored.key}"), dtype, count=stored.end - stored.offset, offset=stored.offset * dtype.itemsize
        )
        if stored.kind == "BFloat16Storage":
            flat = (flat.astype(np.uint32) << 16).view(np.float32)
        values = np.lib.stride_tricks.as_strided(flat, stored.shape, [step * flat.itemsize for step in stored.steps])
        found = torch.from_numpy(values.astype(np.float32, order="C"))
        if not found.isfinite().all():
            raise WeightsError(f"{self.place}: {name!r}: found NaN or infinite numbers, expected finite ones")
        return found

    def _size(self, entry: str) -> int:
        with _damage(self.place):
            return self.file.getinfo(self.root + entry).file_size

    def _read(self, entry: str) -> bytes:
        with _damage(self.place):
            data, size = self.file.read(self.root + entry), self._size(entry)
            if len(data) != size:
                raise EOFError(f"{entry} has {len(data)} of {size} bytes")
            return data


def open_archive(place: str, data: bytes) -> Archive:
    """Return the container in a file's bytes.

    Raises:
        WeightsError: it is truncated, compressed or no file of torch.
    """
    if not zipfile.is_zipfile(BytesIO(data)):
        raise WeightsError(f"{place}: found {len(data)} bytes that begin as a torch checkpoint, but it is truncated: its end is missing")
    with _damage(place):
        file = zipfile.ZipFile(BytesIO(data))
        entries = file.infolist()
    names = [info.filename for info in entries]
    roots = [name.removesuffix("data.pkl") for name in names if re.fullmatch(r"([^/]*/)?data\.pkl", name)]
    if len(roots) != 1:
        raise WeightsError(f"{place}: found a zip archive of {', '.join(names[:3]) or 'nothing'} …, expected one that torch.save wrote")
    if any(info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 for info in entries):
        raise WeightsError(f"{place}: found a compressed or encrypted zip archive, expected a plain one, as torch.save writes it")
    if sum(info.file_size for info in entries) > len(data):
        raise WeightsError(f"{place}: found entries that overlap or exceed the file's {len(data)} bytes, expected each to have its own")
    with _damage(place):
        big = f"{roots[0]}byteorder" in names and file.read(f"{roots[0]}byteorder") == b"big"
    return Archive(place, file, roots[0], ">" if big else "<")


@contextmanager
def _damage(place: str) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"{place}: found a torch checkpoint that is damaged ({reason}), expected a whole zip archive; download or copy the file again"
        ) from error


def stored_tensor(place: str, made: Made) -> StoredTensor:
    """Return where a tensor's numbers lie, from torch's call that would rebuild it.

    Raises:
        WeightsError: the call makes no sense, or the tensor's numbers overlap.
    """
    match made.arguments:
        case (Stored(("storage", Named(kind), str(key), _, *_)), offset, tuple(shape), tuple(steps), *_):
            numbers = (offset, *shape, *steps)
        case _:
            raise WeightsError(f"{place}: found a tensor without storage, offset, shape and strides, expected all of them")
    if len(shape) != len(steps) or len(shape) > 8 or not all(type(n) is int and 0 <= n < 2**40 for n in numbers):
        # Nothing of them is shown: the text of values nested in each other may have no end.
        raise WeightsError(f"{place}: found a tensor whose offset, shape or strides are no sizes, expected whole numbers from 0 on")
    tensor = StoredTensor(kind.split(".")[-1], key, offset, shape, steps)
    if tensor.kind not in NUMBERS:
        raise WeightsError(f"{place}: found a tensor in a {tensor.kind}, expected one of {', '.join(NUMBERS)}")
    if _overlaps(tensor):
        raise WeightsError(f"{place}: found shape {shape} with strides {steps}, whose numbers overlap, expected each number once")
    return tensor


def _overlaps(tensor: StoredTensor) -> bool:
    extent = 1
    for step, size in sorted(zip(tensor.steps, tensor.shape, strict=True)):
        if size > 1:
            if step < extent:
                return True
            extent += step * (size - 1)
    return False

"""Read images in parts: the files of a folder or of a list, or the row groups of a packed dataset.

A part holds about PART_IMAGES images. It is the unit of work, of the written files and of resuming. Images that cannot be read
become faults.
"""

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from yolor_ray.data.images.header import MAGIC_BYTES, image_format_of
from yolor_ray.data.shards.dataset import MANIFEST, Dataset, RowGroup, open_dataset, read_row_group
from yolor_ray.errors import DataError, NotFoundError, StorageError
from yolor_ray.io.storage import absolute, exists, is_file, join, read_bytes, read_start
from yolor_ray.pack.annotations.faults import Fault
from yolor_ray.pack.annotations.image_folder import READ_THREADS, ImageFile, ImageFolder

PART_IMAGES, PART_BYTES = 64, 32 * 2**20
"""Most images of a part, and encoded bytes after which a part ends early."""
LIST_SUFFIXES = (".txt", ".lst")
ASSUMED_BYTES = 2 * 2**20
"""Size that counts for an image of a list in a bucket: asking for each size would take minutes."""


@dataclass(frozen=True)
class EncodedImage:
    """One image of a part, or the fault of an image that cannot be read."""

    name: str
    """Name of the image in the results."""
    url: str
    """Location of the image, for messages."""
    data: bytes = b""
    """Encoded image."""
    size: tuple[int, int] | None = None
    """Width and height of the displayed image, pixels, where `data` is reduced; None where `data` has the size."""
    fault: Fault | None = None


class Part(Protocol):
    """Group of images: read, predicted and written together. Equal parts have equal `repr`."""

    def read(self, names: Collection[str] | None = None) -> Iterator[EncodedImage]:
        """Yield the images in order, or those with one of the names."""


@dataclass(frozen=True)
class FilePart:
    """Image files."""

    folder: str
    """URL of the folder that relative names belong to."""
    files: tuple[ImageFile, ...]

    def read(self, names: Collection[str] | None = None) -> Iterator[EncodedImage]:
        """Yield the images in order; reads run ahead in threads."""
        wanted = [file.name for file in self.files if names is None or file.name in names]
        with ThreadPoolExecutor(READ_THREADS) as readers:
            yield from readers.map(self._read, wanted)

    def _read(self, name: str) -> EncodedImage:
        url = _location(self.folder, name)
        try:
            return EncodedImage(name, url, read_bytes(url))
        except NotFoundError as error:
            # A folder that is gone is no fault of its images.
            if not exists(self.folder):
                raise
            return EncodedImage(name, url, fault=Fault("missing_image", f"{error}; expected an image", url, image=name))
        except StorageError as error:
            # A failure of S3 was retried for minutes, and the next images would fail, too.
            if url.startswith("s3://"):
                raise
            return EncodedImage(name, url, fault=Fault("broken_image", str(error), url, image=name))


@dataclass(frozen=True)
class RowGroupPart:
    """One row group of a packed dataset."""

    dataset: Dataset
    """The dataset, with the shard of the row group alone."""
    group: RowGroup

    def read(self, names: Collection[str] | None = None) -> Iterator[EncodedImage]:
        """Yield the images in order."""
        rows = read_row_group(self.dataset, self.group, ["name", "image"])
        for name, image in zip(rows["name"].to_pylist(), rows["image"], strict=True):
            if names is None or name in names:
                yield EncodedImage(name, join(self.dataset.url, name), image.as_buffer().to_pybytes())

    def __repr__(self) -> str:
        return f"RowGroupPart({self.dataset.shards_by_name[self.group.shard].sha256}, {self.group.index})"


def list_parts(url: str) -> list[Part]:
    """Return the parts of the images at a URL, in a fixed order: a packed dataset, a list, an image, or a folder or prefix of images.

    Raises:
        DataError: there is no image, or the URL is a file of another kind.
        NotFoundError: nothing is at the URL.

    """
    if exists(join(url, MANIFEST)):
        dataset = open_dataset(url)
        by_shard = {group.shard: dataset.with_shard_of(group) for group in dataset.row_groups if group.index == 0}
        return [RowGroupPart(by_shard[group.shard], group) for group in dataset.row_groups]
    if not exists(url):
        raise NotFoundError(f"{url}: not found; expected a folder of images, a list, a packed dataset, a video or an image")
    if not is_file(url):
        return file_parts(url, list(ImageFolder(url).files.values()))
    folder, _, name = url.rpartition("/")
    if name.lower().endswith(LIST_SUFFIXES):
        return file_parts(folder, read_list(url))
    if image_format_of(read_start(url, MAGIC_BYTES)) is None:
        expected = f"an image, a list with the suffix {' or '.join(LIST_SUFFIXES)}, or a folder"
        raise DataError(f"{url}: found a file of another kind, expected {expected}")
    return file_parts(folder, [_listed(folder, name)])


def read_list(url: str) -> list[ImageFile]:
    """Return the images that a text file lists, one path or s3:// URL per line; repeated lines count once.

    Raises:
        DataError: the file is no UTF-8 text, or it has no line.

    """
    try:
        lines = [line.strip() for line in read_bytes(url).decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"{url}: found bytes that are no UTF-8 text, expected one image per line: {error}") from error
    names = dict.fromkeys(line for line in lines if line)
    if not names:
        raise DataError(f"{url}: found no line, expected one image per line")
    folder = url.rpartition("/")[0]
    return [_listed(folder, name) for name in names]


def file_parts(folder: str, files: Sequence[ImageFile]) -> list[Part]:
    """Return consecutive images as parts of at most PART_IMAGES images and about PART_BYTES."""
    parts: list[Part] = []
    group: list[ImageFile] = []
    for file in files:
        if group and (len(group) == PART_IMAGES or sum(member.bytes for member in group) + file.bytes > PART_BYTES):
            parts.append(FilePart(folder, tuple(group)))
            group = []
        group.append(file)
    return [*parts, FilePart(folder, tuple(group))]


def _listed(folder: str, name: str) -> ImageFile:
    """Return an image of a list; a file in a bucket, or one that is not there, has no known size and time."""
    url = _location(folder, name)
    if url.startswith("s3://") or not Path(url).is_file():
        return ImageFile(name, ASSUMED_BYTES, 0)
    status = Path(url).stat()
    return ImageFile(name, status.st_size, status.st_mtime_ns)


def _location(folder: str, name: str) -> str:
    return absolute(name) if "://" in name or PurePosixPath(name).is_absolute() else join(folder, name)

"""Index the image files of a folder, find them by the names in annotations, and read many small files at once."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

from pyarrow import fs

from yolor_ray.errors import DataError
from yolor_ray.io.filesystem import path_of
from yolor_ray.io.storage import join, list_files, read_bytes

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
READ_THREADS = 16


@dataclass(frozen=True)
class ImageFile:
    """One file in an images folder."""

    name: str
    """Path relative to the folder."""
    bytes: int
    """Size of the file."""
    modified_ns: int
    """Time of the last change."""


def stem(name: str) -> str:
    """Return a relative path without its suffix."""
    return str(PurePosixPath(name).with_suffix(""))


def _normal_form(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


class FileIndex:
    """Index of file names.

    A name matches exactly, or else without regard to case and Unicode composition if only one file matches so.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._exact = set(names)
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for name in sorted(self._exact):
            self._by_name[_normal_form(name)].append(name)
            self._by_stem[_normal_form(stem(name))].append(name)

    def find(self, name: str) -> str | None:
        """Return the name of the file that matches, or None."""
        return name if name in self._exact else _only(self._by_name.get(_normal_form(name), []))

    def find_stem(self, path: str) -> str | None:
        """Return the name of the single file that matches a path without suffix, or None."""
        names = self._by_stem.get(_normal_form(path), [])
        return _only([name for name in names if stem(name) == path]) or _only(names)


class ImageFolder(FileIndex):
    """Index of the image files in a folder."""

    def __init__(self, url: str, files: Iterable[ImageFile] | None = None) -> None:
        """Take the given image files of the folder, or list the folder.

        Raises:
            DataError: the folder holds no image file.
        """
        self.url = url
        if files is None:
            image_files = ((name, info) for name, info in _visible_files(url) if name.lower().endswith(IMAGE_SUFFIXES))
            files = [ImageFile(name, info.size, info.mtime_ns or 0) for name, info in image_files]
        self.files = {file.name: file for file in files}
        if not self.files:
            raise DataError(f"{url}: found no image file, expected some that end in {', '.join(IMAGE_SUFFIXES)}")
        super().__init__(self.files)


def _only(names: list[str]) -> str | None:
    return names[0] if len(names) == 1 else None


def _visible_files(url: str) -> Iterator[tuple[str, fs.FileInfo]]:
    """Yield relative path and file information of each file below a folder, sorted, without hidden files."""
    root = path_of(url)
    for info in list_files(url, recursive=True):
        name = info.path[len(root) :].lstrip("/")
        if info.type == fs.FileType.File and not any(part.startswith(".") for part in PurePosixPath(name).parts):
            yield name, info


def list_annotation_files(url: str, suffix: str) -> list[str]:
    """Return the paths below a folder with this suffix in any case, sorted.

    Raises:
        DataError: there is no such file.
    """
    names = [name for name, _ in _visible_files(url) if name.lower().endswith(suffix)]
    if not names:
        raise DataError(f"{url}: found no {suffix} file, expected the annotations")
    return names


def read_files(url: str, names: Sequence[str]) -> Iterator[bytes]:
    """Yield the contents of files below a folder, in order; reads run ahead in threads."""
    with ThreadPoolExecutor(READ_THREADS) as readers:
        for start in range(0, len(names), 64 * READ_THREADS):
            yield from readers.map(lambda name: read_bytes(join(url, name)), names[start : start + 64 * READ_THREADS])

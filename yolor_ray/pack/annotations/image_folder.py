"""Find image files by the names that annotations give them, and read many small files at once."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

from pyarrow import fs

from yolor_ray.errors import DataError
from yolor_ray.io.filesystem import filesystem
from yolor_ray.io.storage import join, list_files, read_bytes

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
READERS = 16


@dataclass(frozen=True)
class ImageFile:
    """One file in an images folder."""

    name: str
    """Path relative to the folder."""
    bytes: int
    """Size of the file."""
    changed_ns: int
    """Time of the last change."""


def stem(name: str) -> str:
    """Return a relative path without its suffix."""
    return str(PurePosixPath(name).with_suffix(""))


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


class FileIndex:
    """Find file names by what other files call them.

    Names pair up exactly, or else without regard to case and Unicode composition where that leaves one file.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._exact = set(names)
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for name in sorted(self._exact):
            self._by_name[_folded(name)].append(name)
            self._by_stem[_folded(stem(name))].append(name)

    def find(self, name: str) -> str | None:
        """Return the name of the file that is called so, or None."""
        return name if name in self._exact else _only(self._by_name.get(_folded(name), []))

    def find_stem(self, wanted: str) -> str | None:
        """Return the name of the one file with this path but for the suffix, or None."""
        names = self._by_stem.get(_folded(wanted), [])
        return _only([name for name in names if stem(name) == wanted]) or _only(names)


class ImageFolder(FileIndex):
    """Know the image files in a folder."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.files = {file.name: file for file in _image_files(filesystem(url)[1], url)}
        if not self.files:
            raise DataError(f"{url}: found no image file, expected some that end in {', '.join(IMAGE_SUFFIXES)}")
        super().__init__(self.files)


def _only(names: list[str]) -> str | None:
    return names[0] if len(names) == 1 else None


def _image_files(root: str, url: str) -> Iterator[ImageFile]:
    for name, info in _visible_files(root, url):
        if name.lower().endswith(IMAGE_SUFFIXES):
            yield ImageFile(name, info.size, info.mtime_ns or 0)


def _visible_files(root: str, url: str) -> Iterator[tuple[str, fs.FileInfo]]:
    """Yield relative path and description of each file below a folder but for hidden ones, sorted."""
    for info in list_files(url, recursive=True):
        name = info.path[len(root) :].lstrip("/")
        if info.type == fs.FileType.File and not any(part.startswith(".") for part in PurePosixPath(name).parts):
            yield name, info


def files_ending(url: str, suffix: str) -> list[str]:
    """Return the paths below a folder that end so (in any case), sorted; DataError when there is none."""
    names = [name for name, _ in _visible_files(filesystem(url)[1], url) if name.lower().endswith(suffix)]
    if not names:
        raise DataError(f"{url}: found no {suffix} file, expected the annotations")
    return names


def read_many(url: str, names: Sequence[str]) -> Iterator[bytes]:
    """Yield the contents of files below a folder, in order; several are on their way at once."""
    with ThreadPoolExecutor(READERS) as readers:
        for start in range(0, len(names), 64 * READERS):
            yield from readers.map(lambda name: read_bytes(join(url, name)), names[start : start + 64 * READERS])

"""Index the image files of a folder, find them by the names in annotations, and read many small files at once."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

from pyarrow import fs

from yolor_ray.errors import DataError
from yolor_ray.io.filesystem import path_of
from yolor_ray.io.storage import join, list_files, read_bytes
from yolor_ray.pack.annotations.file_names import agreement, normal_form, path_parts, readings

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


class FileIndex:
    """Index of file names.

    A name matches exactly, or else the one file that agrees best with its last parts, see `file_names`.
    """

    def __init__(self, names: Iterable[str], root: str = "") -> None:
        """Index names of files below a folder; `root` is the URL of the folder, where names may contain its last parts."""
        self._exact = set(names)
        self._root = path_parts(root)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_file_stem: dict[str, list[str]] = defaultdict(list)
        for name in sorted(self._exact):
            self._by_stem[normal_form(stem(name))].append(name)
            file_name = (path_parts(name) or (name,))[-1]
            self._by_name[normal_form(file_name)].append(name)
            self._by_file_stem[normal_form(stem(file_name))].append(name)

    def find(self, name: str) -> str | None:
        """Return the name of the file that matches, or None if there is none or more than one."""
        return _only(self.candidates(name))

    def candidates(self, name: str) -> list[str]:
        """Return the files that match a name equally well: one, or several if the name is ambiguous."""
        return [name] if name in self._exact else self._best(name, self._by_name, path_parts)

    def find_stem(self, path: str) -> str | None:
        """Return the name of the single file that matches a path without suffix, or None."""
        names = self._by_stem.get(normal_form(path), [])
        return _only([name for name in names if stem(name) == path]) or _only(names)

    def stem_candidates(self, path: str) -> list[str]:
        """Return the files that match a path without suffix equally well."""
        return [name] if (name := self.find_stem(path)) else self._best(path, self._by_file_stem, lambda file: path_parts(stem(file)))

    def is_whole_path(self, name: str, file: str) -> bool:
        """Return True if a name holds the whole path of a file, so that it can mean no other file of the same name in another folder."""
        return name == file or any(agreement(path, path_parts(file), self._root).whole for path in readings(name))

    def explain_miss(self, name: str) -> tuple[str, str]:
        """Return code and message of the fault that a name does not match one image."""
        files = self.candidates(name)
        if len(files) > 1:
            return "ambiguous_image", f"found {len(files)} images that {name!r} may mean: {', '.join(files)}; expected one"
        others = [file for path in readings(name)[:1] for file in self._by_name.get(normal_form(path.parts[-1]), [])]
        hint = f"; in other folders lie {', '.join(others)}" if others else ""
        return "missing_image", f"found no image called {name!r}, expected one{hint}"

    def _best(self, name: str, index: Mapping[str, list[str]], parts_of: Callable[[str], tuple[str, ...]]) -> list[str]:
        for path in readings(name):
            scores = {file: agreement(path, parts_of(file), self._root) for file in index.get(normal_form(path.parts[-1]), [])}
            scores = {file: score for file, score in scores.items() if not score.apart or path.absolute}
            if scores:
                return [file for file, score in scores.items() if score == max(scores.values())]
        return []


class ImageFolder(FileIndex):
    """Index of the image files in a folder."""

    def __init__(self, url: str) -> None:
        """List the folder.

        Raises:
            DataError: the folder holds no image file.
        """
        self.url = url
        image_files = ((name, info) for name, info in _visible_files(url) if name.lower().endswith(IMAGE_SUFFIXES))
        self.files = {name: ImageFile(name, info.size, info.mtime_ns or 0) for name, info in image_files}
        if not self.files:
            raise DataError(f"{url}: found no image file, expected some that end in {', '.join(IMAGE_SUFFIXES)}")
        super().__init__(self.files, url)


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

"""Index the image files of a folder, find them by the names in annotations, and read many small files at once."""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

from pyarrow import fs

from yolor_ray.data.images.header import MAGIC_BYTES, image_format_of
from yolor_ray.errors import DataError
from yolor_ray.io.filesystem import path_of
from yolor_ray.io.storage import join, list_files, read_bytes, read_start
from yolor_ray.pack.annotations.file_names import agreement, normal_form, path_parts, readings

IMAGE_SUFFIXES = (".bmp", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Suffixes of files that are taken for images; a file of another kind under such a name is a fault."""
SIDECAR_SUFFIXES = (".csv", ".db", ".ini", ".json", ".jsonl", ".md", ".txt", ".xml", ".yaml", ".yml")
"""Suffixes of files that labelling tools and file managers write beside images; such files are not opened to look for an image."""
READ_THREADS = 16
MAX_EXAMPLES = 5

logger = logging.getLogger(__name__)


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
        names = self.stem_matches(path)
        return _only([name for name in names if stem(name) == path]) or _only(names)

    def stem_matches(self, path: str) -> list[str]:
        """Return the names of all files that match a path without suffix, sorted."""
        return self._by_stem.get(normal_form(path), [])

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

    def __init__(self, url: str, files: Iterable[ImageFile] | None = None) -> None:
        """Take the given image files of the folder, or list the folder.

        Raises:
            DataError: the folder holds no image file.
        """
        self.url = url
        self.files = {file.name: file for file in (_list_images(url) if files is None else files)}
        if not self.files:
            raise DataError(f"{url}: found no image file, expected JPEG, PNG, WebP, BMP or TIFF")
        super().__init__(self.files, url)


def _list_images(url: str) -> list[ImageFile]:
    """Return the image files below a folder, and log the number of the other files."""
    everything = dict(_files(url))
    listed = {name: info for name, info in everything.items() if not _is_hidden(name)}
    unknown = [name for name in listed if not name.lower().endswith((*IMAGE_SUFFIXES, *SIDECAR_SUFFIXES))]
    images_by_content = {name for name, is_image in zip(unknown, _are_images(url, unknown), strict=True) if is_image}
    names = [name for name in listed if name.lower().endswith(IMAGE_SUFFIXES) or name in images_by_content]
    _log_other_files(url, sorted(set(listed) - set(names)), hidden=len(everything) - len(listed))
    return [ImageFile(name, listed[name].size, listed[name].mtime_ns or 0) for name in names]


def _are_images(url: str, names: Sequence[str]) -> Iterator[bool]:
    """Yield True for each file whose content is an image of a supported format; only the start of each file is read."""
    with ThreadPoolExecutor(READ_THREADS) as readers:
        yield from readers.map(lambda name: image_format_of(read_start(join(url, name), MAGIC_BYTES)) is not None, names)


def _log_other_files(url: str, names: Sequence[str], hidden: int) -> None:
    """Log the number and kinds of files that are no images; sidecars and hidden files are usual and no reason for a warning."""
    odd = [name for name in names if not name.lower().endswith(SIDECAR_SUFFIXES)]
    kinds = Counter(PurePosixPath(name).suffix.lower() or "no suffix" for name in names)
    by_suffix = ", ".join(f"{suffix} {count}" for suffix, count in sorted(kinds.items()))
    examples = ", ".join((odd or names)[:MAX_EXAMPLES])
    if names or hidden:
        log = logger.warning if odd else logger.info
        log("event=no_images files=%d by_suffix='%s' hidden=%d examples='%s' url=%s", len(names), by_suffix, hidden, examples, url)


def _only(names: list[str]) -> str | None:
    return names[0] if len(names) == 1 else None


def _files(url: str) -> Iterator[tuple[str, fs.FileInfo]]:
    """Yield relative path and file information of each file below a folder, sorted."""
    root = path_of(url)
    for info in list_files(url, recursive=True):
        if info.type == fs.FileType.File:
            yield info.path[len(root) :].lstrip("/"), info


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def list_annotation_files(url: str, suffix: str) -> list[str]:
    """Return the paths below a folder with this suffix in any case, sorted.

    Raises:
        DataError: there is no such file.
    """
    names = [name for name, _ in _files(url) if name.lower().endswith(suffix) and not _is_hidden(name)]
    if not names:
        raise DataError(f"{url}: found no {suffix} file, expected the annotations")
    return names


def read_files(url: str, names: Sequence[str]) -> Iterator[bytes]:
    """Yield the contents of files below a folder, in order; reads run ahead in threads."""
    with ThreadPoolExecutor(READ_THREADS) as readers:
        for start in range(0, len(names), 64 * READ_THREADS):
            yield from readers.map(lambda name: read_bytes(join(url, name)), names[start : start + 64 * READ_THREADS])

"""List a folder once, and answer questions about its files without further requests."""

import functools
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from yolor_ray.io.storage import join, list_files
from yolor_ray.pack.annotations.image_folder import IMAGE_SUFFIXES, list_annotation_files, stem
from yolor_ray.pack.layouts.layout import SPLIT_WORDS, split_of_folders

SAMPLED_PATHS = 1000
"""Paths that are searched, about, to find the folder of images."""


@dataclass(frozen=True)
class FolderTree:
    """Files of a folder."""

    url: str
    """URL of the folder."""
    files: tuple[str, ...]
    """Paths of all files below the folder, sorted, without hidden ones."""

    @functools.cached_property
    def file_set(self) -> frozenset[str]:
        """Return the paths of all files."""
        return frozenset(self.files)

    @functools.cached_property
    def images(self) -> tuple[str, ...]:
        """Return the paths of the image files."""
        return tuple(name for name in self.files if name.lower().endswith(IMAGE_SUFFIXES))

    @functools.cached_property
    def image_set(self) -> frozenset[str]:
        """Return the paths of the image files."""
        return frozenset(self.images)

    @functools.cached_property
    def folders(self) -> frozenset[str]:
        """Return the paths of all folders that have files at any depth; the folder itself is ''."""
        return frozenset("" if parent == PurePosixPath() else str(parent) for name in self.files for parent in PurePosixPath(name).parents)

    @functools.cached_property
    def entries(self) -> tuple[str, ...]:
        """Return the names at the top, sorted; names of folders end in a slash."""
        return tuple(sorted({first + ("/" if rest else "") for first, _, rest in (name.partition("/") for name in self.files)}))

    def with_suffix(self, *suffixes: str) -> list[str]:
        """Return the paths of the files with one of these suffixes in any case."""
        return [name for name in self.files if name.lower().endswith(suffixes)]

    def in_folder(self, folder: str) -> list[str]:
        """Return the paths of the files directly in a folder."""
        return [name for name in self.files if folder_of(name) == folder]

    def url_of(self, path: str) -> str:
        """Return the URL of a path below the folder; '' is the folder itself."""
        return join(self.url, path) if path else self.url

    def below(self, folder: str) -> "FolderTree":
        """Return the tree of a folder below."""
        prefix = f"{folder}/"
        return FolderTree(join(self.url, folder), tuple(name[len(prefix) :] for name in self.files if name.startswith(prefix)))


def list_tree(url: str) -> FolderTree:
    """List a folder; an absent folder has no files."""
    return FolderTree(url, tuple(list_annotation_files(url, suffix="")) if list_files(url) else ())


def folder_of(path: str) -> str:
    """Return the path of the folder that holds a file; '' for a file at the top."""
    return path.rpartition("/")[0]


def lowest_common_folder(folders: Iterable[str]) -> str:
    """Return the deepest path that is the beginning of all given paths; '' where they have none."""
    parts = [folder.split("/") for folder in folders]
    shared = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return "/".join(shared)


def split_lists(tree: FolderTree, folder: str) -> dict[str, str]:
    """Return the text file in a folder that is called by each split's name; `trainval` counts where `train` is absent."""
    images = {stem(name) for name in tree.images}
    texts = (name for name in tree.in_folder(folder) if name.lower().endswith(".txt") and stem(name) not in images)
    names = {PurePosixPath(name).stem.lower(): name for name in texts}
    # Later words win, and trainval is the weakest.
    words = ["trainval", *(word for word in SPLIT_WORDS if word != "trainval")]
    return {SPLIT_WORDS[word]: names[word] for word in words if word in names}


def folder_that_holds(tree: FolderTree, paths: Iterable[str], split: str | None = None) -> str | None:
    """Return the folder below which most of a sample of the paths are images; None if no path is.

    Folders whose path names the split come before those that name no split, and these before those of another split. Among equals, the
    first in alphabetical order counts.

    Args:
        tree: files to search.
        paths: paths of images without suffix, relative to the unknown folder.
        split: split that the images belong to; None where it is unknown.
    """
    by_name: dict[str, list[str]] = defaultdict(list)
    for image in tree.images:
        by_name[_key(image).rpartition("/")[2]].append(image)
    counts: Counter[str] = Counter()
    keys = [path.casefold() for path in paths]
    # The frames of all videos may have the same names, so that each path has many candidates.
    for key in keys[:: len(keys) // SAMPLED_PATHS + 1]:
        for image in by_name.get(key.rpartition("/")[2], ()):
            if f"/{_key(image)}".endswith(f"/{key}"):
                counts["/".join(image.split("/")[: -key.count("/") - 1])] += 1

    def rank(folder: str) -> tuple[int, int, str]:
        found = split_of_folders(folder)
        return (0 if found == split else 1 if found is None else 2) if split else 0, -counts[folder], folder

    return min(counts, key=rank, default=None)


def _key(image: str) -> str:
    return stem(image).casefold()

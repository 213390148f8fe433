"""Define a recognised layout, and the words that name splits in paths."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from yolor_ray.pack.annotations.faults import Fault
from yolor_ray.pack.annotations.image_folder import ImageFolder
from yolor_ray.pack.annotations.schema import Annotations

SPLITS = ("train", "val", "test")
SPLIT_WORDS = {
    **{"train": "train", "training": "train", "trainval": "train"},
    **{"val": "val", "valid": "val", "validation": "val"},
    **{"test": "test", "testing": "test"},
}
"""Split of each word that folders and files are called by."""
_WORD = re.compile(rf"(?<![a-z])({'|'.join(SPLIT_WORDS)})(?![a-z])")


@dataclass(frozen=True)
class Source:
    """Images of one folder for one split, with the reader of their annotations."""

    images: str
    """URL of the images folder."""
    annotations: str
    """URL of the file or folder of annotations."""
    read: Callable[[ImageFolder], Annotations]
    """Reads the annotations of the images."""
    selected: frozenset[str] | None = None
    """Names below the images folder that the split has; None takes all, or those in `split_list`."""
    split_list: str = ""
    """URL of the list of the split's images; empty without a list."""
    faults: tuple[Fault, ...] = ()
    """Faults met while the layout was read."""


@dataclass(frozen=True)
class Layout:
    """A recognised layout."""

    name: str
    """Name for messages."""
    evidence: str
    """URL of the file or folder by which the layout was recognised."""
    splits: Mapping[str, tuple[Source, ...]]
    """Sources by split: train, val, test; absent splits are left out."""
    notes: tuple[str, ...] = ()
    """Decisions that the user should know of."""
    sorted_classes: bool = False
    """Number classes in alphabetical order, not in the order of the splits."""


def split_of_folder(name: str) -> str | None:
    """Return the split that the name of a folder says, such as `valid` or `train2017`; None for any other name."""
    return SPLIT_WORDS.get(re.sub(r"\d*$", "", name.lower()))


def split_of_file(path: str) -> str | None:
    """Return the split that a word in the stem of a file says, or else one of its folders, the deepest first; None without such a word."""
    *folders, name = PurePosixPath(path).parts
    words = {SPLIT_WORDS[word] for word in _WORD.findall(PurePosixPath(name).stem.lower())}
    if words:
        return words.pop() if len(words) == 1 else None
    return next((split for folder in reversed(folders) if (split := split_of_folder(folder))), None)


def split_of_folders(path: str) -> str | None:
    """Return the split that the outermost folder with a split's name says in a path of folders; None without such a folder."""
    return next((split for folder in path.split("/") if (split := split_of_folder(folder))), None)


def by_split(sources: Mapping[str, list[Source]]) -> dict[str, tuple[Source, ...]]:
    """Return the sources in the order of `SPLITS`, without empty splits."""
    return {split: tuple(sources[split]) for split in SPLITS if sources.get(split)}

"""Define the names of the classes, image labels and keypoints that annotations and network outputs refer to by number.

Keypoints belong to classes: a class has some of the keypoints, in an order of its own, or none.
Legend: K object classes, J keypoints of all classes together.
"""

import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class ClassNames(Protocol):
    """Names in the order of their numbers; packed datasets and weights have this interface."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of object classes."""

    @property
    def image_classes(self) -> tuple[str, ...]:
        """Names of labels of whole images."""

    @property
    def keypoint_names(self) -> tuple[str, ...]:
        """Names of the keypoints of all classes together."""

    @property
    def class_keypoints(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the keypoints of each object class that has some."""


def complete_class_keypoints(
    class_keypoints: Mapping[str, tuple[str, ...]], classes: Sequence[str], keypoint_names: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Return the keypoints by class; an empty mapping beside keypoints means that every class has all, as in older datasets and weights."""
    return dict(class_keypoints) or {name: tuple(keypoint_names) for name in classes if keypoint_names}


def have_all_keypoints(names: ClassNames) -> bool:
    """Return True if every class has all keypoints, in one order."""
    return dict(names.class_keypoints) == complete_class_keypoints({}, names.classes, names.keypoint_names)


def digested_names(names: ClassNames) -> list[Collection[Any]]:
    """Return the lists of names that the digest of a dataset covers."""
    lists: list[Collection[Any]] = [names.classes, names.image_classes, names.keypoint_names]
    # Where every class has all keypoints, the digest is that of versions without keypoints by class.
    return lists if have_all_keypoints(names) else [*lists, sorted(names.class_keypoints.items())]


def keypoint_indices(names: ClassNames) -> tuple[np.ndarray, ...]:
    """Return for each class the indices of its keypoints among all keypoints, int64, in the order of the class."""
    numbers = {name: index for index, name in enumerate(names.keypoint_names)}
    return tuple(np.array([numbers[name] for name in names.class_keypoints.get(label, ())], np.int64) for label in names.classes)


def keypoint_flags(names: ClassNames) -> np.ndarray:
    """Return (K, J) bool: the keypoints that each class has."""
    flags = np.zeros((len(names.classes), len(names.keypoint_names)), np.bool_)
    for row, indices in zip(flags, keypoint_indices(names), strict=True):
        row[indices] = True
    return flags


def class_keypoints_problem(class_keypoints: Any, classes: Sequence[str], keypoint_names: Sequence[str]) -> str | None:
    """Return a message if a value read from a file is no mapping of `classes` to some of `keypoint_names`, else None."""
    if not isinstance(class_keypoints, dict) or not all(isinstance(keypoints, list) for keypoints in class_keypoints.values()):
        return f"{class_keypoints!r:.200}, expected lists of names by class name"
    for name, keypoints in class_keypoints.items():
        if name not in classes:
            return f"the class {name!r:.200}, expected names among classes"
        if unknown := [keypoint for keypoint in keypoints if keypoint not in keypoint_names]:
            return f"{unknown[0]!r:.200} for {name!r:.200}, expected names among keypoint_names"
        if not keypoints or len(set(keypoints)) < len(keypoints):
            return f"{keypoints!r:.200} for {name!r:.200}, expected one or more different names"
    unused = set(keypoint_names) - {keypoint for keypoints in class_keypoints.values() for keypoint in keypoints}
    return f"no class with {min(unused)!r:.200}, expected each of keypoint_names for some class" if class_keypoints and unused else None


def unusable_name(names: Iterable[Any]) -> Any:
    """Return the first of some names that is no text or has a control character, which could change a terminal or a log; else None."""
    return next((name for name in names if not isinstance(name, str) or any(unicodedata.category(c) in ("Cc", "Cs") for c in name)), None)

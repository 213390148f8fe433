"""Define the names of the classes, image labels and keypoints that annotations and network outputs refer to by number."""

import unicodedata
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable


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
        """Names of each object's keypoints."""


def unusable_name(names: Iterable[Any]) -> Any:
    """Return the first of some names that is no text or has a control character, which could change a terminal or a log; else None."""
    return next((name for name in names if not isinstance(name, str) or any(unicodedata.category(c) in ("Cc", "Cs") for c in name)), None)

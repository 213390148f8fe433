"""Say what gives the numbers in annotations and in a network's outputs their meaning."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class ClassNames(Protocol):
    """Hold names in the order of their numbers; packed data sets and weights both do."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of object classes."""

    @property
    def image_classes(self) -> tuple[str, ...]:
        """Names of labels of whole images."""

    @property
    def keypoint_names(self) -> tuple[str, ...]:
        """Names of each object's keypoints."""

"""Define the names of the classes, image labels and keypoints that annotations and network outputs refer to by number."""

from typing import Protocol, runtime_checkable


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

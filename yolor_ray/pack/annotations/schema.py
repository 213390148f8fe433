"""Annotations as their files state them, before the images are opened and the boxes normalised."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from yolor_ray.class_names import complete_class_keypoints
from yolor_ray.pack.annotations.faults import Fault

NO_BOX = (math.nan, math.nan, math.nan, math.nan)
"""Box of an object whose box cannot be read."""


@dataclass(frozen=True)
class AnnotatedObject:
    """One object as its annotation file states it."""

    box: tuple[float, float, float, float]
    """x1, y1, x2, y2 as continuous edges; pixels, or fractions of the image's sides where the image has `fractions`."""
    label: int
    """Index into the classes."""
    line: int | None = None
    """Line of the object in its file."""
    pointer: str = ""
    """JSON pointer of the object in its file."""
    crowd: bool = False
    """A region of many objects."""
    area: float | None = None
    """Annotated area, px²; None if there is none above 0."""
    mask: Any = None
    """COCO segmentation: polygons, or a run-length dict with `size` and `counts`."""
    keypoints: tuple[float, ...] | None = None
    """x, y, visibility of each keypoint of the dataset; visibility -1 for keypoints that the class does not have."""
    identity: int = -1
    """Number of the individual; -1 unknown."""


@dataclass(frozen=True)
class AnnotatedImage:
    """One image as its annotation file states it."""

    name: str
    """File name relative to the images folder."""
    objects: tuple[AnnotatedObject, ...]
    """Objects on the image; a background has none."""
    file: str
    """URL of the annotation file."""
    line: int | None = None
    """Line of the image's size in the file."""
    pointer: str = ""
    """JSON pointer of the image in the file."""
    declared_px: tuple[int, int] | None = None
    """Width and height that the annotation file declares; None where the file declares none."""
    fractions: bool = False
    """Boxes, polygons and keypoints are fractions of the image's sides, not pixels."""
    image_labels: tuple[int, ...] = ()
    """Indices into the image classes."""
    tasks: tuple[str, ...] = ("detect",)
    """Tasks that the image is annotated for, sorted; annotations of other tasks are unknown, not absent."""
    camera: int = -1
    """Number of the camera; -1 unknown."""

    def fault(self, code: str, message: str, obj: AnnotatedObject | None = None) -> Fault:
        """Make a fault of this image, or of one object on the image."""
        located = obj or self
        box = obj.box if obj and all(map(math.isfinite, obj.box)) else None
        return Fault(code, f"image {self.name!r}: {message}", self.file, located.line, located.pointer, self.name if obj else "", box)


@dataclass(frozen=True)
class Annotations:
    """Contents of a set of annotation files."""

    classes: tuple[str, ...]
    """Object classes, by label."""
    images: tuple[AnnotatedImage, ...]
    """Images that exist and have readable annotations."""
    faults: tuple[Fault, ...]
    """Faults met while reading."""
    image_classes: tuple[str, ...] = ()
    """Image-level classes, by label."""
    keypoint_names: tuple[str, ...] = ()
    """Keypoints of all classes together, in the order of the keypoints of an object."""
    unplaced_objects: int = 0
    """Objects that name no image, so that any image without objects may be theirs."""
    class_keypoints: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Keypoints of each class that has some; left out, every class has all `keypoint_names`."""

    def __post_init__(self) -> None:
        """Give every class all keypoints where `class_keypoints` is left out."""
        object.__setattr__(self, "class_keypoints", complete_class_keypoints(self.class_keypoints, self.classes, self.keypoint_names))

    @property
    def has_identities(self) -> bool:
        """Return True if any object has an identity."""
        return any(obj.identity >= 0 for image in self.images for obj in image.objects)


def scale_fractions(image: AnnotatedImage, width: int, height: int) -> AnnotatedImage:
    """Return an image whose boxes, polygons and keypoints are pixels, where they are fractions of the displayed size in pixels."""
    if not image.fractions:
        return image
    return replace(image, objects=tuple(_scale(obj, width, height) for obj in image.objects), fractions=False)


def _scale(obj: AnnotatedObject, width: int, height: int) -> AnnotatedObject:
    x1, y1, x2, y2 = obj.box
    scales = width, height, 1
    return replace(
        obj,
        box=(x1 * width, y1 * height, x2 * width, y2 * height),
        mask=obj.mask and [[value * scales[index % 2] for index, value in enumerate(polygon)] for polygon in obj.mask],
        keypoints=obj.keypoints and tuple(value * scales[index % 3] for index, value in enumerate(obj.keypoints)),
    )


def spread_keypoints(keypoints: tuple[float, ...] | None, indices: Sequence[int], count: int) -> tuple[float, ...] | None:
    """Move keypoints of 3 numbers each to their `indices` among `count` keypoints; the others are unknown, with visibility -1."""
    if keypoints is None or list(indices) == list(range(count)):
        return keypoints
    points = [(0.0, 0.0, -1.0)] * count
    for index, point in zip(indices, zip(*[iter(keypoints)] * 3, strict=True), strict=True):
        points[index] = point
    return tuple(value for point in points for value in point)


def add_labels_of_objects(annotations: Annotations) -> Annotations:
    """Replace image labels by the classes of the objects on each image; crowd regions do not count."""
    images = tuple(_add_labels_of_objects(image) if "detect" in image.tasks else image for image in annotations.images)
    return replace(annotations, images=images, image_classes=annotations.classes)


def _add_labels_of_objects(image: AnnotatedImage) -> AnnotatedImage:
    labels = sorted({obj.label for obj in image.objects if not obj.crowd})
    return replace(image, image_labels=tuple(labels), tasks=tuple(sorted({*image.tasks, "classify"})))


def drop_duplicates(images: list[AnnotatedImage]) -> tuple[list[AnnotatedImage], list[Fault]]:
    """Return the first annotation of each image file, and a fault for each further annotation of the same file."""
    first_by_name: dict[str, AnnotatedImage] = {}
    faults = []
    for image in images:
        first = first_by_name.setdefault(image.name, image)
        if first is not image:
            location = first.fault("", "").location
            message = f"found a second annotation of this file, expected one; the first is at {location}; left out"
            faults.append(image.fault("duplicate_id", message))
    return list(first_by_name.values()), faults

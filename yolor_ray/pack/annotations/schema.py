"""Hold annotations as they were drawn: not yet fitted to the real image, which nobody has opened so far."""

from dataclasses import dataclass, replace
from typing import Any

from yolor_ray.pack.annotations.faults import Fault


@dataclass(frozen=True)
class DrawnObject:
    """One object as its annotation file has it."""

    box: tuple[float, float, float, float]
    """x1, y1, x2, y2 as continuous edges; pixels or fractions of the image, as the image says."""
    label: int
    """Index into the classes."""
    line: int | None = None
    """Line of the object in its file."""
    pointer: str = ""
    """JSON pointer of the object in its file."""
    crowd: bool = False
    """A region of many objects."""
    area: float | None = None
    """Area in px² as annotated."""
    mask: Any = None
    """COCO segmentation: polygons, or a run-length dict with `size` and `counts`."""
    keypoints: tuple[float, ...] | None = None
    """x, y, visibility per keypoint."""
    identity: int = -1
    """The same number is the same individual; -1 unknown."""


@dataclass(frozen=True)
class AnnotatedImage:
    """One image as its annotation file has it."""

    name: str
    """File name relative to the images folder."""
    objects: tuple[DrawnObject, ...]
    """What is drawn on it; none is a background."""
    file: str
    """URL of the annotation file."""
    line: int | None = None
    """Line of the image's size in the file."""
    pointer: str = ""
    """JSON pointer of the image in the file."""
    claimed_px: tuple[int, int] | None = None
    """Width and height by the annotation file; None where it has none."""
    fractions: bool = False
    """Boxes are fractions of the image's sides, not pixels."""
    image_labels: tuple[int, ...] = ()
    """Indices into the image classes."""
    tasks: tuple[str, ...] = ("detect",)
    """What was annotated, sorted; of any other task nothing is known."""
    camera: int = -1
    """Which camera took it; -1 unknown."""

    def fault(self, code: str, message: str, drawn: DrawnObject | None = None) -> Fault:
        """Return a fault of this image, or of one object on it."""
        holder = drawn or self
        return Fault(code, f"image {self.name!r}: {message}", self.file, holder.line, holder.pointer)


@dataclass(frozen=True)
class Annotations:
    """All that a set of annotation files says."""

    classes: tuple[str, ...]
    """Object classes, by label."""
    images: tuple[AnnotatedImage, ...]
    """Images that exist and whose annotations could be read."""
    faults: tuple[Fault, ...]
    """What had to be left out or mended."""
    image_classes: tuple[str, ...] = ()
    """Image-level classes, by label."""
    keypoint_names: tuple[str, ...] = ()
    """Keypoints of every object, in order."""

    @property
    def has_identities(self) -> bool:
        """Tell whether any object is a known individual."""
        return any(drawn.identity >= 0 for image in self.images for drawn in image.objects)


def with_labels_of_objects(found: Annotations) -> Annotations:
    """Return annotations whose image labels are the classes of the objects on each image; crowd regions do not count."""
    images = tuple(_labelled(image) if "detect" in image.tasks else image for image in found.images)
    return replace(found, images=images, image_classes=found.classes)


def _labelled(image: AnnotatedImage) -> AnnotatedImage:
    present = sorted({drawn.label for drawn in image.objects if not drawn.crowd})
    return replace(image, image_labels=tuple(present), tasks=tuple(sorted({*image.tasks, "classify"})))


def without_repeats(images: list[AnnotatedImage]) -> tuple[list[AnnotatedImage], list[Fault]]:
    """Return images so that each file comes once; a second annotation of the same file is left out and reported."""
    first: dict[str, AnnotatedImage] = {}
    faults = []
    for image in images:
        holder = first.setdefault(image.name, image)
        if holder is not image:
            earlier = holder.fault("", "").place
            message = f"found a second annotation of this file, expected one; the first is at {earlier}; left out"
            faults.append(image.fault("duplicate_id", message))
    return list(first.values()), faults

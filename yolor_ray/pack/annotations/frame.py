"""Find the frame in which the boxes of an image were drawn: the displayed image, or the image as stored, before EXIF orientation.

Tools disagree about EXIF orientation, and some claim the one size and draw in the other. The boxes decide for the image as a whole: a
frame must hold them all. Where both frames do, the claimed size decides.
"""

from typing import NamedTuple

from yolor_ray.data.images.header import ImageHeader
from yolor_ray.pack.annotations.faults import Fault
from yolor_ray.pack.annotations.masks import segmentation_bounds, size_of_runs
from yolor_ray.pack.annotations.schema import AnnotatedImage, AnnotatedObject

ROUNDING_PX = 1.0
"""Excess of a box over the image that is not reported, px."""


class Frame(NamedTuple):
    """Image size in which boxes were drawn."""

    width: int
    height: int
    orientation: int
    """EXIF orientation by which annotations are turned; 1 leaves them as they are."""


def find_frame(image: AnnotatedImage, header: ImageHeader) -> tuple[Frame | None, list[Fault]]:
    """Return the frame of an image's annotations, and a fault if it is not the displayed image of the claimed size.

    The frame is None if the claimed size is neither that of the displayed image nor that of the stored image: the meaning of the boxes is
    unknown then. Fractions always belong to the displayed image.
    """
    displayed = Frame(header.width, header.height, 1)
    is_turned = header.orientation >= 5 and header.width != header.height and not image.fractions
    stored = Frame(header.height, header.width, header.orientation) if is_turned else displayed
    declared = image.declared_px or _size_of_boxes(image)
    claimed = displayed[:2] if declared is None or image.fractions else declared
    size = "no declared size" if declared is None else f"a declared size of {claimed[0]} x {claimed[1]} px"
    found = f"found {size} for an image of {header.width} x {header.height} px"
    if claimed not in (displayed[:2], displayed[1::-1]):
        return None, [image.fault("size_mismatch", f"{found}, expected the size of the image; image left out")]
    if stored != displayed:
        return _turned_frame(image, stored, displayed, claimed, found)
    if claimed == displayed[:2]:
        return displayed, []
    if _holds(displayed, image):
        return displayed, [image.fault("size_mismatch", f"{found}, width and height interchanged; boxes kept as they are")]
    return None, [image.fault("size_mismatch", f"{found}, expected the size of the image; image left out")]


def _size_of_boxes(image: AnnotatedImage) -> tuple[int, int] | None:
    """Return width and height of run lengths whose extent is the box of their object, or None: such a box means pixels of that size."""
    runs = (obj for obj in image.objects if isinstance(obj.mask, dict) and obj.box == segmentation_bounds(obj.mask, None))
    return next((size_of_runs(obj.mask) for obj in runs), None)


def _turned_frame(
    image: AnnotatedImage, stored: Frame, displayed: Frame, claimed: tuple[int, int], found: str
) -> tuple[Frame, list[Fault]]:
    """Return the one frame that holds all boxes, or else the claimed one."""
    fitting = [frame for frame in (stored, displayed) if _holds(frame, image)]
    frame = fitting[0] if len(fitting) == 1 else next(frame for frame in (displayed, stored) if frame[:2] == claimed)
    if frame == displayed and claimed == displayed[:2]:
        return frame, []
    choice = "the claimed one" if claimed == frame[:2] else "the only one that holds all boxes"
    consequence = "boxes kept" if frame == displayed else "boxes turned with the image"
    message = f"{found} with EXIF orientation {stored.orientation}, frame {frame.width} x {frame.height} px is {choice}; {consequence}"
    return frame, [image.fault("size_mismatch", message)]


def _holds(frame: Frame, image: AnnotatedImage) -> bool:
    return all(_holds_object(frame, obj) for obj in image.objects)


def _holds_object(frame: Frame, obj: AnnotatedObject) -> bool:
    """Return True if a box lies within a frame, and run lengths have the size of the frame."""
    x1, y1, x2, y2 = obj.box
    inside = min(x1, y1) >= -ROUNDING_PX and x2 <= frame.width + ROUNDING_PX and y2 <= frame.height + ROUNDING_PX
    return inside and not (isinstance(obj.mask, dict) and obj.mask.get("size") != [frame.height, frame.width])

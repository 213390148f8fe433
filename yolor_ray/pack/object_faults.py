"""Find faults that show only when the objects of an image or of a whole dataset are compared: equal boxes, fractions instead of pixels."""

from collections import defaultdict
from dataclasses import replace

import numpy as np

from yolor_ray.pack.annotations.faults import Fault
from yolor_ray.pack.annotations.schema import AnnotatedImage, AnnotatedObject, Annotations

SLACK = 0.01
"""Allowed excess of a fraction over 0 to 1, for rounding."""


def leave_out_fractions(annotations: Annotations) -> Annotations:
    """Leave out the images with objects, with a fault each, if all boxes of the dataset lie within 0 to 1 where pixels are expected.

    Single boxes do not decide, because a box may be one pixel in the corner of its image. Images without objects stay.
    """
    in_pixels = [image for image in annotations.images if image.objects and not image.fractions]
    boxes = np.array([obj.box for image in in_pixels for obj in image.objects]).reshape(-1, 4)
    if not in_pixels or boxes.min() < -SLACK or boxes.max() > 1 + SLACK:
        return annotations
    names = {image.name for image in in_pixels}
    images = tuple(image for image in annotations.images if image.name not in names)
    return replace(annotations, images=images, faults=(*annotations.faults, *(_fractions_fault(image, len(boxes)) for image in in_pixels)))


def _fractions_fault(image: AnnotatedImage, boxes: int) -> Fault:
    found = "found box {:.6g}, {:.6g}, {:.6g}, {:.6g}".format(*image.objects[0].box)
    message = f"{found}, and all {boxes} boxes of the dataset within 0 to 1, expected pixels; looks like fractions; image left out"
    return image.fault("looks_like_fractions", message, image.objects[0])


def merge_equal_objects(annotations: Annotations) -> Annotations:
    """Merge objects of one image with equal box, class and crowd flag into one, with a fault for each further object.

    The object keeps the first mask, the keypoints with most labels and the identity that any of the equal objects has. Objects with
    different known identities are different individuals, and all stay. Boxes are equal if they are equal in float32, as records hold them.
    """
    images = []
    faults: list[Fault] = []
    for image in annotations.images:
        objects, image_faults = _merge_equal(image)
        images.append(replace(image, objects=objects) if image_faults else image)
        faults += image_faults
    return replace(annotations, images=tuple(images), faults=(*annotations.faults, *faults))


def _merge_equal(image: AnnotatedImage) -> tuple[tuple[AnnotatedObject, ...], list[Fault]]:
    kept: list[AnnotatedObject] = []
    faults = []
    indices: dict[tuple[int, bool, bytes], list[int]] = defaultdict(list)
    for obj in image.objects:
        equal = indices[obj.label, obj.crowd, np.array(obj.box, np.float32).tobytes()]
        index = next((index for index in equal if _may_be_one(kept[index], obj)), None)
        if index is None:
            equal.append(len(kept))
            kept.append(obj)
            continue
        first = image.fault("", "", kept[index]).location
        message = f"found a second object of the same class with the same box, expected one; the first is at {first}; kept as one object"
        faults.append(image.fault("duplicate_box", message, obj))
        kept[index] = _merge(kept[index], obj)
    return tuple(kept), faults


def _may_be_one(first: AnnotatedObject, second: AnnotatedObject) -> bool:
    return first.identity == second.identity or min(first.identity, second.identity) < 0


def _merge(first: AnnotatedObject, second: AnnotatedObject) -> AnnotatedObject:
    """Return the first object, completed by what only the second has."""
    masked, other = (second, first) if first.mask is None and second.mask is not None else (first, second)
    return replace(
        first,
        mask=masked.mask,
        area=other.area if masked.area is None else masked.area,
        keypoints=max(first.keypoints, second.keypoints, key=_labelled_keypoints),
        identity=max(first.identity, second.identity),
    )


def _labelled_keypoints(keypoints: tuple[float, ...] | None) -> int:
    return sum(visibility > 0 for visibility in (keypoints or ())[2::3])

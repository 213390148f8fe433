"""Withdraw tasks from images that are not fully annotated for them, so that an object that cannot be read never becomes background."""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import replace

from yolor_ray.pack.annotations.faults import CONSEQUENCE, Fault, count_by_code
from yolor_ray.pack.annotations.schema import AnnotatedImage, Annotations

OBJECT_TASKS = frozenset({"detect", "segment", "pose", "embed"})
"""Tasks that need all objects of an image."""


def withdraw_tasks(annotations: Annotations, object_codes: Collection[str]) -> Annotations:
    """Withdraw the tasks of objects from each image that lost one, with a fault; an image without any other task is left out.

    An image without objects may have lost one, too, if some object names no image.

    Args:
        annotations: the dataset.
        object_codes: codes of objects that cannot be read.
    """
    faults_by_image: dict[str, list[Fault]] = defaultdict(list)
    for fault in annotations.faults:
        if fault.image and fault.code in object_codes:
            faults_by_image[fault.image].append(fault)
    # A dataset without any object is refused as a whole, with the cause.
    is_unsure = annotations.unplaced_objects > 0 and any(image.objects for image in annotations.images)
    images = []
    faults = []
    for image in annotations.images:
        causes = faults_by_image[image.name]
        withdrawn = OBJECT_TASKS if causes or (is_unsure and not image.objects) else frozenset()
        kept = replace(image, tasks=tuple(task for task in image.tasks if task not in withdrawn))
        if kept.tasks != image.tasks:
            codes = ", ".join(f"{code} {count}" for code, count in count_by_code(causes).items())
            unplaced = f"found no object, and {annotations.unplaced_objects} objects that name no image, expected the image of each object"
            found = f"found objects that cannot be read ({codes}), expected every object" if causes else unplaced
            faults.append(image.fault(CONSEQUENCE, f"{found}; {_consequence(image, kept)}"))
        if kept.tasks or not image.tasks:
            images.append(kept)
    return replace(annotations, images=tuple(images), faults=(*annotations.faults, *faults))


def _consequence(image: AnnotatedImage, kept: AnnotatedImage) -> str:
    withdrawn = ", ".join(task for task in image.tasks if task not in kept.tasks)
    return f"image not annotated for {withdrawn}" if kept.tasks else "image left out"

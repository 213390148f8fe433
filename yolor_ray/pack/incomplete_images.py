"""Withdraw tasks from images that are not fully annotated for them, so that an object that cannot be read never becomes background."""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import replace

from yolor_ray.pack.annotations.faults import CONSEQUENCE, Fault, count_by_code
from yolor_ray.pack.annotations.schema import AnnotatedImage, Annotations

OBJECT_TASKS = frozenset({"detect", "segment", "pose", "embed"})
"""Tasks that need all objects of an image."""
KEYPOINT_CODES = frozenset({"bad_keypoints"})
"""Codes of objects whose keypoints alone cannot be read."""
UNPLACED_CODES = frozenset({"bad_annotation"})
"""Codes of objects that name no image, so that any image without objects may be theirs."""


def withdraw_tasks(annotations: Annotations, object_codes: Collection[str]) -> Annotations:
    """Withdraw the tasks of objects from each image that lost one, with a fault; an image without any other task is left out.

    An image without objects may have lost one, too, if the image of some object is unknown.

    Args:
        annotations: the dataset.
        object_codes: codes of objects that cannot be read.
    """
    faults_by_image: dict[str, list[Fault]] = defaultdict(list)
    for fault in annotations.faults:
        if fault.image and fault.code in {*object_codes, *KEYPOINT_CODES}:
            faults_by_image[fault.image].append(fault)
    unplaced = [fault for fault in annotations.faults if fault.code in UNPLACED_CODES & {*object_codes}]
    has_objects = any(image.objects for image in annotations.images)
    images = []
    faults = []
    for image in annotations.images:
        # A dataset without any object is refused as a whole, with the cause.
        causes = faults_by_image[image.name] or (unplaced if has_objects and not image.objects else [])
        kept = _keep_tasks(image, causes)
        if kept.tasks != image.tasks:
            faults.append(_fault(image, kept.tasks, causes))
        if kept.tasks or not image.tasks:
            images.append(kept)
    return replace(annotations, images=tuple(images), faults=(*annotations.faults, *faults))


def _keep_tasks(image: AnnotatedImage, faults: list[Fault]) -> AnnotatedImage:
    """Return the image without the tasks that its faults withdraw."""
    lost_codes = {fault.code for fault in faults}
    withdrawn = {"pose"} if lost_codes and lost_codes <= KEYPOINT_CODES else OBJECT_TASKS if lost_codes else set()
    return replace(image, tasks=tuple(task for task in image.tasks if task not in withdrawn))


def _fault(image: AnnotatedImage, kept_tasks: Collection[str], faults: list[Fault]) -> Fault:
    withdrawn = ", ".join(task for task in image.tasks if task not in kept_tasks)
    codes = ", ".join(f"{code} {count}" for code, count in count_by_code(faults).items())
    consequence = f"image not annotated for {withdrawn}" if kept_tasks else "image left out"
    if not any(fault.image for fault in faults):
        found = f"found no object, and objects of unknown images ({codes}), expected the image of each object"
        return image.fault(CONSEQUENCE, f"{found}; {consequence}")
    return image.fault(CONSEQUENCE, f"found objects that cannot be read ({codes}), expected every object; {consequence}")

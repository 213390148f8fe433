"""Determine the tasks that each image of a COCO file is annotated for, so that unknown annotations are not taken for absent objects.

A list `tasks` in the image's entry decides. Without the list:
- `detect`: annotated, unless the file has image labels and not a single box.
- `classify`: annotated where the entry has `labels`, even an empty list.
- `segment`, `embed`: annotated where an object of the image has a mask or an identity; on an image without objects, where some object
  of the file has one.
- `pose`: the same with a list of keypoints and with objects of the classes that have keypoints. As in COCO, an object is annotated with
  a list of unlabelled keypoints, too: scoring and training then leave the object out.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from yolor_ray.config.network import TASKS
from yolor_ray.pack.annotations.faults import Fault
from yolor_ray.pack.annotations.schema import AnnotatedImage, AnnotatedObject

OBJECT_TASKS: dict[str, Callable[[AnnotatedObject], bool]] = {
    "segment": lambda obj: obj.mask is not None,
    "pose": lambda obj: obj.keypoints is not None,
    "embed": lambda obj: obj.identity >= 0,
}
"""By task: a predicate that is True for objects annotated for the task."""


def assign_tasks(
    pairs: Sequence[tuple[dict[str, Any], AnnotatedImage]], classify: bool, pose_labels: Collection[int]
) -> tuple[list[AnnotatedImage], list[Fault]]:
    """Return the images with their tasks, and the faults of the lists `tasks`.

    Args:
        pairs: entries of the file, and images with their objects.
        classify: the dataset has image classes.
        pose_labels: labels of the classes that have keypoints.
    """
    objects = [obj for _, image in pairs for obj in image.objects]
    labelled = [classify and isinstance(entry.get("labels"), list) for entry, _ in pairs]
    background_tasks = _tasks_of_objects(objects) | ({"detect"} if objects or not any(labelled) else set())
    images = []
    faults = []
    for (entry, image), has_labels in zip(pairs, labelled, strict=True):
        named_tasks, fault = _named_tasks(entry, image)
        faults += [fault] if fault else []
        object_tasks = _tasks_of_objects(image.objects) | {"detect"} if image.objects else background_tasks
        if not any(obj.label in pose_labels for obj in image.objects):
            object_tasks = object_tasks | (background_tasks & {"pose"})
        inferred = object_tasks | {"classify"} if has_labels else object_tasks
        images.append(replace(image, tasks=tuple(sorted(inferred if named_tasks is None else named_tasks))))
    return images, faults


def _tasks_of_objects(objects: Iterable[AnnotatedObject]) -> set[str]:
    objects = list(objects)
    return {task for task, is_annotated in OBJECT_TASKS.items() if any(map(is_annotated, objects))}


def _named_tasks(entry: dict[str, Any], image: AnnotatedImage) -> tuple[set[str] | None, Fault | None]:
    """Return the tasks that the entry names, or None if the entry names none, and the fault of its list."""
    given = entry.get("tasks")
    if given is None:
        return None, None
    names = given if isinstance(given, list) else []
    if isinstance(given, list) and all(name in TASKS for name in names):
        return set(names), None
    message = f"found tasks {given!r}, expected a list of some of {', '.join(TASKS)}; other tasks left out"
    return {task for task in TASKS if task in names}, image.fault("unknown_task", message)

"""Tell what each image of a COCO file was annotated for, so that what nobody looked for is not taken for absent.

A list `tasks` in the image's entry says it. Else boxes are annotated, unless the file has image labels and not one box; image labels
where the entry has `labels`, even an empty list; masks, keypoints and identities where an object of the image has one, and on an image
without objects where some object of the file has one.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from yolor_ray.config.network import TASKS
from yolor_ray.pack.annotations.faults import Fault
from yolor_ray.pack.annotations.schema import AnnotatedImage, DrawnObject

SHOWN_BY: dict[str, Callable[[DrawnObject], bool]] = {
    "segment": lambda drawn: drawn.mask is not None,
    "pose": lambda drawn: any(visibility > 0 for visibility in (drawn.keypoints or ())[2::3]),
    "embed": lambda drawn: drawn.identity >= 0,
}
"""By task: tell whether an object was annotated for it."""


def with_tasks(pairs: Sequence[tuple[dict[str, Any], AnnotatedImage]], classify: bool) -> tuple[list[AnnotatedImage], list[Fault]]:
    """Return images with their tasks, and what is wrong with the lists that name some.

    Args:
        pairs: entries and images with their objects.
        classify: there are image classes at all.
    """
    objects = [drawn for _, image in pairs for drawn in image.objects]
    labels = [classify and isinstance(entry.get("labels"), list) for entry, _ in pairs]
    background = _shown(objects) | ({"detect"} if objects or not any(labels) else set())
    images = []
    faults = []
    for (entry, image), labelled in zip(pairs, labels, strict=True):
        named, fault = _named(entry, image)
        faults += [fault] if fault else []
        boxes = _shown(image.objects) | {"detect"} if image.objects else background
        found = (boxes | {"classify"} if labelled else boxes) if named is None else named
        images.append(replace(image, tasks=tuple(sorted(found))))
    return images, faults


def _shown(objects: Iterable[DrawnObject]) -> set[str]:
    objects = list(objects)
    return {task for task, shows in SHOWN_BY.items() if any(map(shows, objects))}


def _named(entry: dict[str, Any], image: AnnotatedImage) -> tuple[set[str] | None, Fault | None]:
    """Return the tasks that the entry names, None if it names none, and what is wrong with them."""
    given = entry.get("tasks")
    if given is None:
        return None, None
    names = given if isinstance(given, list) else []
    if isinstance(given, list) and all(name in TASKS for name in names):
        return set(names), None
    message = f"found tasks {given!r}, expected a list of some of {', '.join(TASKS)}; other tasks left out"
    return {task for task in TASKS if task in names}, image.fault("unknown_task", message)

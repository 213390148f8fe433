"""Read images of one object each, as re-identification sets have them: the file name tells who is shown and which camera saw it.

Classes, individuals and cameras are collected from the names of all images of the folder, also of those that a split file does not
select, so that splits packed one by one agree on the numbers.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from yolor_ray.io.storage import join
from yolor_ray.pack.annotations.faults import Fault
from yolor_ray.pack.annotations.image_folder import ImageFolder, stem
from yolor_ray.pack.annotations.schema import AnnotatedImage, Annotations, DrawnObject
from yolor_ray.pack.annotations.split_file import read_split

ANY_CLASS = "object"
"""The one class of a set whose names tell no classes."""
WHOLE_IMAGE = (0.0, 0.0, 1.0, 1.0)
MISSING = ("missing_image", "the name of an image in the images folder")


class _Told(NamedTuple):
    """What a file name tells."""

    identity: str
    class_name: str
    camera: str | None


def read_crops(folder: ImageFolder, pattern: str, split_file: str = "", classes: Sequence[str] = ()) -> Annotations:
    """Return one object per image, as large as the image, with the identity and camera that the file name tells.

    Args:
        folder: the images.
        pattern: regular expression, searched in the path of a file below the folder, without its suffix; its named groups are
            `identity`, and if there are `class` and `camera`.
        split_file: URL of a list of images, one file name or path below the folder per line; empty takes all.
        classes: class names by label; empty collects and sorts those in the file names.
    """
    told = {name: found for name in folder.files if (found := _told(pattern, name))}
    classes = tuple(classes) or tuple(sorted({found.class_name for found in told.values()}))
    identities = _numbers(found.identity for found in told.values())
    cameras = _numbers(found.camera for found in told.values() if found.camera)
    chosen, faults = _chosen(folder, split_file)
    images = []
    for name in chosen:
        url, found = join(folder.url, name), told.get(name)
        if found is None or found.class_name not in classes:
            faults.append(_fault(url, pattern, found, classes))
            continue
        whole = DrawnObject(WHOLE_IMAGE, classes.index(found.class_name), identity=identities[found.identity])
        camera = cameras[found.camera] if found.camera else -1
        images.append(AnnotatedImage(name, (whole,), url, fractions=True, tasks=("detect", "embed"), camera=camera))
    return Annotations(classes, tuple(images), tuple(faults))


def _chosen(folder: ImageFolder, split_file: str) -> tuple[list[str], list[Fault]]:
    if not split_file:
        return list(folder.files), []
    return read_split(split_file, lambda text: folder.find(text) or folder.find_stem(text), MISSING)


def _told(pattern: str, name: str) -> _Told | None:
    match = re.search(pattern, stem(name))
    if match is None:
        return None
    found = match.groupdict()
    identity, class_name = found["identity"], found.get("class", ANY_CLASS)
    return _Told(identity, class_name, found.get("camera")) if identity and class_name else None


def _fault(url: str, pattern: str, found: _Told | None, classes: Sequence[str]) -> Fault:
    if found is None:
        return Fault("bad_name", f"found a file name that does not match {pattern!r}, expected who is shown; image left out", url)
    return Fault("unknown_class", f"found class {found.class_name!r}, expected one of {', '.join(classes)}; image left out", url)


def _numbers(words: Iterable[str]) -> dict[str, int]:
    return {word: number for number, word in enumerate(sorted(set(words)))}

"""Read images of one object each, as re-identification sets have them: the file name holds the individual, the class and the camera.

Classes, individuals and cameras are collected from the names of all images of the folder, also of images outside the split file.
Splits packed one by one thus agree on the numbers.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from yolor_ray.io.storage import join
from yolor_ray.pack.annotations.faults import Fault
from yolor_ray.pack.annotations.image_folder import ImageFolder, stem
from yolor_ray.pack.annotations.schema import AnnotatedImage, AnnotatedObject, Annotations
from yolor_ray.pack.annotations.split_file import read_split_file

ANY_CLASS = "object"
"""Class of all objects where file names hold no class."""
WHOLE_IMAGE = (0.0, 0.0, 1.0, 1.0)
MISSING = ("missing_image", "the name of an image in the images folder")


class _NameFields(NamedTuple):
    """Values in a file name."""

    identity: str
    class_name: str
    camera: str | None


def read_crops(folder: ImageFolder, pattern: str, split_file: str = "", classes: Sequence[str] = ()) -> Annotations:
    """Read the annotations of a folder of crops: one object per image, as large as the image, with identity and camera.

    Args:
        folder: the images.
        pattern: regular expression, searched in the path of a file below the folder, without its suffix; its named groups are
            `identity`, and optionally `class` and `camera`.
        split_file: URL of a list of images, one file name or path below the folder per line; empty takes all.
        classes: class names by label; empty collects and sorts the classes in the file names.
    """
    parsed = {name: fields for name in folder.files if (fields := _parse_name(pattern, name))}
    classes = tuple(classes) or tuple(sorted({fields.class_name for fields in parsed.values()}))
    identities = _number(fields.identity for fields in parsed.values())
    cameras = _number(fields.camera for fields in parsed.values() if fields.camera)
    names, faults = list(folder.files), list[Fault]()
    if split_file:
        names, faults = read_split_file(split_file, lambda text: folder.candidates(text) or folder.stem_candidates(text), MISSING)
    images = []
    for name in names:
        url, fields = join(folder.url, name), parsed.get(name)
        if fields is None or fields.class_name not in classes:
            faults.append(_fault(url, pattern, fields, classes))
            continue
        obj = AnnotatedObject(WHOLE_IMAGE, classes.index(fields.class_name), identity=identities[fields.identity])
        camera = cameras[fields.camera] if fields.camera else -1
        images.append(AnnotatedImage(name, (obj,), url, fractions=True, tasks=("detect", "embed"), camera=camera))
    return Annotations(classes, tuple(images), tuple(faults))


def _parse_name(pattern: str, name: str) -> _NameFields | None:
    match = re.search(pattern, stem(name))
    if match is None:
        return None
    groups = match.groupdict()
    identity, class_name = groups["identity"], groups.get("class", ANY_CLASS)
    return _NameFields(identity, class_name, groups.get("camera")) if identity and class_name else None


def _fault(url: str, pattern: str, fields: _NameFields | None, classes: Sequence[str]) -> Fault:
    if fields is None:
        return Fault("bad_name", f"found a file name that does not match {pattern!r}, expected an identity in it; image left out", url)
    return Fault("unknown_class", f"found class {fields.class_name!r}, expected one of {', '.join(classes)}; image left out", url)


def _number(words: Iterable[str]) -> dict[str, int]:
    """Return the number of each word: its position in alphabetical order."""
    return {word: number for number, word in enumerate(sorted(set(words)))}

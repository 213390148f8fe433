"""Read PASCAL VOC XML.

Coordinates are 1-based and inclusive, as the VOC devkit defines them: x1 = xmin - 1, x2 = xmax. Objects marked `difficult` are kept.
Classes are collected from every XML file of the folder, also from files outside the split file. Splits packed one by one thus agree on
the labels.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath, PureWindowsPath

from yolor_ray.errors import DataError
from yolor_ray.io.storage import join
from yolor_ray.pack.annotations.faults import Fault
from yolor_ray.pack.annotations.image_folder import ImageFolder, list_annotation_files, read_files, stem
from yolor_ray.pack.annotations.safe_xml import Node, XmlError, parse_xml
from yolor_ray.pack.annotations.schema import AnnotatedImage, AnnotatedObject, Annotations, drop_duplicates
from yolor_ray.pack.annotations.split_file import read_split_file

MISSING = ("missing_annotation", "the name of an image with an XML file")
EDGES = ("xmin", "ymin", "xmax", "ymax")


def read_voc(folder: ImageFolder, annotations: str, split_file: str = "", classes: Sequence[str] = ()) -> Annotations:
    """Read the annotations of a folder of VOC XML files.

    Args:
        folder: the images.
        annotations: URL of the folder of XML files.
        split_file: URL of a list of images, one stem or file name per line; empty takes all.
        classes: class names by label; empty collects and sorts those in the files.
    """
    names = list_annotation_files(annotations, ".xml")
    roots = {stem(name): _root(data, join(annotations, name)) for name, data in zip(names, read_files(annotations, names), strict=True)}
    class_names = {_text(node, "name") for root in roots.values() if isinstance(root, Node) for node in root.find_all("object")}
    classes = tuple(classes) or tuple(sorted(class_names - {""}))
    if not classes:
        raise DataError(f"{annotations}: found no <object> with a <name> in {len(roots)} XML files, expected at least one")
    files = {stem(name): join(annotations, name) for name in names}
    keys, faults = read_split_file(split_file, lambda text: _key(text, roots), MISSING) if split_file else (list(roots), [])
    images = []
    for key in keys:
        root = roots[key]
        if isinstance(root, Fault):
            faults.append(root)
            continue
        image, image_faults = _image(root, files[key], folder.find(_file_name(root)) or folder.find_stem(key), classes)
        faults += image_faults
        images += [image] if image else []
    images, duplicates = drop_duplicates(images)
    unannotated = [] if split_file else _unannotated(folder, files, {image.name for image in images}, annotations)
    return Annotations(classes, tuple(images), (*faults, *duplicates, *unannotated))


def _root(data: bytes, file: str) -> Node | Fault:
    try:
        root = parse_xml(data)
    except XmlError as error:
        return Fault("bad_xml", f"{error}; image left out", file, error.line)
    if root.tag != "annotation":
        return Fault("bad_xml", f"found root element <{root.tag}>, expected <annotation>; image left out", file, root.line)
    return root


def _text(node: Node, tag: str) -> str:
    child = node.find(tag)
    return child.text if child else ""


def _file_name(root: Node) -> str:
    """Return the file name in <filename>, without the POSIX or Windows path that some tools write."""
    return PureWindowsPath(_text(root, "filename")).name


def _key(text: str, roots: dict[str, Node | Fault]) -> str | None:
    """Return the key of the XML file that a line of a split file names, or None.

    A line is a stem, a file name, a path, or a stem and the 1, 0 or -1 of VOC's lists per class.
    """
    without_flag = re.sub(r"\s+(-1|0|1)$", "", text)
    candidates = (text, stem(text), PurePosixPath(text).stem, without_flag, PurePosixPath(without_flag).stem)
    return next((key for key in candidates if key in roots), None)


def _image(root: Node, file: str, name: str | None, classes: Sequence[str]) -> tuple[AnnotatedImage | None, list[Fault]]:
    if name is None:
        message = f"found no image called {_file_name(root)!r} or {stem(file.rsplit('/', 1)[-1])!r} in the images folder; left out"
        return None, [Fault("missing_image", message, file, (root.find("filename") or root).line)]
    size = root.find("size")
    image = AnnotatedImage(name, (), file, (size or root).line, declared_px=_declared_px(size))
    items = [_object(image, node, classes) for node in root.find_all("object")]
    objects = tuple(item for item in items if isinstance(item, AnnotatedObject))
    return replace(image, objects=objects), [item for item in items if isinstance(item, Fault)]


def _declared_px(size: Node | None) -> tuple[int, int] | None:
    """Return the size that the file declares; None without a size, or for the 0 x 0 that some tools write."""
    numbers = [_text(size, tag) for tag in ("width", "height")] if size else []
    return (int(numbers[0]), int(numbers[1])) if numbers and all(n.isdecimal() and int(n) > 0 for n in numbers) else None


def _object(image: AnnotatedImage, node: Node, classes: Sequence[str]) -> AnnotatedObject | Fault:
    located = AnnotatedObject((0, 0, 0, 0), 0, node.line)
    name = _text(node, "name")
    if not name:
        return image.fault("missing_class", "found an object without <name>, expected one; object left out", located)
    if name not in classes:
        return image.fault("unknown_class", f"found class {name!r}, expected one of {', '.join(classes)}; object left out", located)
    bndbox = node.find("bndbox")
    if bndbox is None:
        return image.fault("missing_box", f"found a {name!r} without <bndbox>, expected one; object left out", located)
    edges = [_number(_text(bndbox, tag)) for tag in EDGES]
    if not all(math.isfinite(edge) for edge in edges):
        texts = ", ".join(f"{tag} {_text(bndbox, tag)!r}" for tag in EDGES)
        return image.fault("not_a_number", f"found {texts}, expected four numbers; object left out", located)
    xmin, ymin, xmax, ymax = edges
    if xmax <= xmin or ymax <= ymin:
        found = f"found a {name!r} with xmin {xmin:g}, ymin {ymin:g}, xmax {xmax:g}, ymax {ymax:g}"
        return image.fault("zero_area_box", f"{found}, expected xmin < xmax and ymin < ymax; object left out", located)
    return replace(located, box=(_low_edge(xmin), _low_edge(ymin), xmax, ymax), label=classes.index(name))


def _low_edge(pixel: float) -> float:
    """Return the edge before a first pixel, numbered from 1. A 0 comes from a tool that numbers from 0, and is the edge already."""
    return pixel - 1 if pixel >= 1 else min(pixel, 0.0)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _unannotated(folder: ImageFolder, files: dict[str, str], used: set[str], annotations: str) -> list[Fault]:
    """Return a fault for each image without an XML file: in VOC such an image is not annotated, which is not the same as empty."""
    names = [name for name in folder.files if name not in used and stem(name) not in files]
    message = "found no XML file for image {!r} in {}, expected one; left out"
    return [Fault("missing_annotation", message.format(name, annotations), join(folder.url, name)) for name in names]

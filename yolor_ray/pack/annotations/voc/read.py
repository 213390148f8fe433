"""Read PASCAL VOC XML.

Objects marked `difficult` are kept. Classes are collected from every XML file of the folder, also from files outside the split file.
Splits packed one by one thus agree on the labels.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from yolor_ray.errors import DataError
from yolor_ray.io.storage import join
from yolor_ray.pack.annotations.faults import Fault
from yolor_ray.pack.annotations.image_folder import FileIndex, ImageFolder, list_annotation_files, read_files, stem
from yolor_ray.pack.annotations.safe_xml import Node, XmlError, parse_xml
from yolor_ray.pack.annotations.schema import AnnotatedImage, AnnotatedObject, Annotations, drop_duplicates
from yolor_ray.pack.annotations.split_file import read_split_file
from yolor_ray.pack.annotations.values import claimed_size
from yolor_ray.pack.annotations.voc.objects import object_nodes, read_objects, text_of

MISSING = ("missing_annotation", "the name of an image with an XML file")
MAX_SHOWN_FAULTS = 5


def read_voc(folder: ImageFolder, annotations: str, split_file: str = "", classes: Sequence[str] = ()) -> Annotations:
    """Read the annotations of a folder of VOC XML files.

    Args:
        folder: the images.
        annotations: URL of the folder of XML files.
        split_file: URL of a list of images, one stem or file name per line; empty takes all.
        classes: class names by label; empty collects and sorts those in the files.
    """
    files = {stem(name): name for name in list_annotation_files(annotations, ".xml")}
    urls = {key: join(annotations, name) for key, name in files.items()}
    contents = read_files(annotations, list(files.values()))
    roots = {key: _root(data, urls[key]) for key, data in zip(files, contents, strict=True)}
    classes = tuple(classes) or _class_names(roots, annotations)
    index = FileIndex(files.values(), annotations)
    keys, faults = list(roots), list[Fault]()
    if split_file:
        keys, faults = read_split_file(split_file, lambda text: [stem(name) for name in _annotation_files(text, index)], MISSING)
    images = []
    for key in keys:
        image, image_faults = _image(roots[key], urls[key], key, (folder, index), classes)
        faults += image_faults
        images += [image] if image else []
    annotated, duplicates = _one_file_per_image(images)
    unannotated = [] if split_file else _unannotated(folder, files, {image.name for image in images}, annotations)
    return Annotations(classes, tuple(_assign_tasks(annotated)), (*faults, *duplicates, *unannotated))


def _root(data: bytes, file: str) -> Node | Fault:
    try:
        root = parse_xml(data)
    except XmlError as error:
        return Fault("bad_xml", f"{error}; image left out", file, error.line)
    if root.tag != "annotation":
        return Fault("bad_xml", f"found root element <{root.tag}>, expected <annotation>; image left out", file, root.line)
    return root


def _class_names(roots: Mapping[str, Node | Fault], annotations: str) -> tuple[str, ...]:
    """Return the names of all objects, sorted."""
    readable = [root for root in roots.values() if isinstance(root, Node)]
    names = {text_of(node, "name") for root in readable for node in object_nodes(root)} - {""}
    if not names:
        faults = [root for root in roots.values() if isinstance(root, Fault)]
        found = f"found no <object> with a <name> in {len(readable)} XML files" if readable else "found no readable XML file"
        shown = f"; {len(faults)} files cannot be read: " + "; ".join(map(str, faults[:MAX_SHOWN_FAULTS])) if faults else ""
        raise DataError(f"{annotations}: {found}, expected at least one{shown}")
    return tuple(sorted(names))


def _annotation_files(text: str, index: FileIndex) -> list[str]:
    """Return the XML files that a line of a split file may name.

    A line is a stem, a file name, a path, or a stem and the 1, 0 or -1 of VOC's lists per class.
    """
    without_flag = re.sub(r"\s+(-1|0|1)$", "", text)
    names = (text, _without_suffix(text), without_flag, _without_suffix(without_flag))
    return next((files for name in names if (files := index.stem_candidates(name))), [])


def _without_suffix(name: str) -> str:
    return re.sub(r"\.[^./\\]*$", "", name)


def _image(
    root: Node | Fault, file: str, key: str, indices: tuple[ImageFolder, FileIndex], classes: Sequence[str]
) -> tuple[AnnotatedImage | None, list[Fault]]:
    """Return the image that an XML file annotates, or None, and the faults of the file; `indices` are of images and of XML files."""
    if isinstance(root, Fault):
        return None, [root]
    name, error = _find_image(root, key, *indices)
    fault = [Fault(*error, file, (root.find("filename") or root).line)] if error else []
    if name is None:
        return None, fault
    size = root.find("size")
    declared_px = claimed_size(text_of(size, "width"), text_of(size, "height")) if size else None
    image = AnnotatedImage(name, (), file, (size or root).line, declared_px=declared_px)
    items = list(read_objects(image, root, classes))
    objects = tuple(item for item in items if isinstance(item, AnnotatedObject))
    return replace(image, objects=objects), fault + [item for item in items if isinstance(item, Fault)]


def _find_image(root: Node, key: str, folder: ImageFolder, index: FileIndex) -> tuple[str | None, tuple[str, str] | None]:
    """Return the image of an XML file, by the name of the XML file first and then by <filename>; and code and message of a fault."""
    file_name = text_of(root, "filename")
    own = folder.stem_candidates(key)
    named = folder.candidates(file_name) or folder.stem_candidates(file_name) or folder.stem_candidates(_without_suffix(file_name))
    both = [name for name in own if name in named]
    candidates = both or own or named
    if len(candidates) > 1:
        found = f"found {len(candidates)} images for {key!r} and <filename> {file_name!r}: {', '.join(candidates)}"
        return None, ("ambiguous_image", f"{found}; expected one; left out")
    if not candidates:
        return None, ("missing_image", f"found no image called {file_name!r} or {key!r} in {folder.url}; left out")
    if own and named and not both:
        message = f"found <filename> {file_name!r}, another image; the name of the XML file decides"
        return own[0], ("name_mismatch", f"image {own[0]!r}: {message}")
    if not own and (files := index.stem_candidates(stem(named[0]))):
        message = f"found <filename> {file_name!r}, but {' or '.join(files)} annotates it, and no image is called {key!r}; left out"
        return None, ("duplicate_id", message)
    return candidates[0], None


def _one_file_per_image(images: Sequence[AnnotatedImage]) -> tuple[list[AnnotatedImage], list[Fault]]:
    """Return each image once; an image is left out where several XML files disagree, because each may lack objects of the other."""
    contents: dict[str, set[frozenset]] = defaultdict(set)
    for image in images:
        contents[image.name].add(frozenset((obj.label, obj.box) for obj in image.objects))
    message = "found several XML files with different objects for this image, expected one; image left out"
    faults = [image.fault("duplicate_id", message) for image in images if len(contents[image.name]) > 1]
    kept, duplicates = drop_duplicates([image for image in images if len(contents[image.name]) == 1])
    return kept, faults + duplicates


def _assign_tasks(images: Sequence[AnnotatedImage]) -> list[AnnotatedImage]:
    """Add `segment` to images whose objects all have polygons, and to backgrounds beside them; other images keep no polygon."""
    masked = [bool(image.objects) and all(obj.mask for obj in image.objects) for image in images]
    assigned = []
    for image, has_masks in zip(images, masked, strict=True):
        objects = image.objects if has_masks else tuple(replace(obj, mask=None) for obj in image.objects)
        is_annotated = has_masks or (not image.objects and any(masked))
        assigned.append(replace(image, objects=objects, tasks=("detect", "segment") if is_annotated else image.tasks))
    return assigned


def _unannotated(folder: ImageFolder, files: Mapping[str, str], used: set[str], annotations: str) -> list[Fault]:
    """Return a fault for each image without an XML file: in VOC such an image is not annotated, which is not the same as empty."""
    names = [name for name in folder.files if name not in used and stem(name) not in files]
    message = "found no XML file for image {!r} in {}, expected one; left out"
    return [Fault("missing_annotation", message.format(name, annotations), join(folder.url, name)) for name in names]

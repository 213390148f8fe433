"""Read COCO JSON: boxes, crowd regions, masks, keypoints.

Extensions are `identity` per annotation, and `labels`, `camera`, `tasks` per image. Labels are the categories in order of their ids,
which need not be contiguous. An image without annotations is a background; `coco_tasks` determines the tasks of each image.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

from yolor_ray.data.coco_rules import is_crowd
from yolor_ray.data.shards.relabel import MEMBER_BITS
from yolor_ray.errors import DataError
from yolor_ray.io.storage import read_bytes
from yolor_ray.pack.annotations.coco_tasks import assign_tasks
from yolor_ray.pack.annotations.faults import Fault
from yolor_ray.pack.annotations.image_folder import ImageFolder
from yolor_ray.pack.annotations.masks import is_number
from yolor_ray.pack.annotations.schema import AnnotatedImage, AnnotatedObject, Annotations, drop_duplicates

_EntryAndImage = tuple[dict[str, Any], AnnotatedImage]


def read_coco(folder: ImageFolder, file: str, image_classes: Sequence[str] = ()) -> Annotations:
    """Read the annotations of a COCO JSON file.

    Args:
        folder: the images.
        file: URL of the JSON file.
        image_classes: image-level class names by label; empty collects and sorts those in the file.
    """
    content = _load(file)
    categories = _categories(content["categories"], file)
    labels = {category: label for label, category in enumerate(categories)}
    keypoints = _keypoint_names(content["categories"], file)
    label_names = {label for entry in content["images"] if isinstance(entry, dict) for label in _image_labels(entry)}
    image_classes = tuple(image_classes) or tuple(sorted(label_names))
    entries_and_images, faults = _images(content["images"], folder, file, image_classes)
    image_ids = {entry["id"] for entry in content["images"] if isinstance(entry, dict) and _is_id(entry.get("id"))}
    objects: dict[Any, list[AnnotatedObject]] = defaultdict(list)
    names = {key: image.name for key, (_, image) in entries_and_images.items()}
    for item in _objects(content["annotations"], file, image_ids, names, labels, len(keypoints)):
        if isinstance(item, Fault):
            faults.append(item)
        else:
            objects[item[0]].append(item[1])
    pairs = [(entry, replace(image, objects=tuple(objects[key]))) for key, (entry, image) in entries_and_images.items()]
    images, task_faults = assign_tasks(pairs, classify=bool(image_classes))
    images, duplicates = drop_duplicates(images)
    return Annotations(tuple(categories.values()), tuple(images), (*faults, *task_faults, *duplicates), image_classes, keypoints)


def _load(file: str) -> dict[str, list]:
    try:
        content = json.loads(read_bytes(file).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: found no JSON ({error or 'nested too deep'}), expected COCO annotations") from error
    for name in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise DataError(f"{file}#/{name}: found no list, expected COCO JSON with images, annotations and categories")
    return content


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _categories(entries: list, file: str) -> dict[int, str]:
    """Return the names by category id, in order of the ids."""
    names: dict[int, str] = {}
    for index, entry in enumerate(entries):
        key, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if not isinstance(key, int) or not isinstance(name, str) or not name:
            raise DataError(f"{file}#/categories/{index}: found id {key!r} and name {name!r}, expected a whole number and a name")
        if key in names or name in names.values():
            raise DataError(f"{file}#/categories/{index}: found id {key} or name {name!r} a second time, expected each once")
        names[key] = name
    if not names:
        raise DataError(f"{file}#/categories: found none, expected at least one")
    return dict(sorted(names.items()))


def _keypoint_names(entries: list, file: str) -> tuple[str, ...]:
    lists = {tuple(map(str, entry["keypoints"])) for entry in entries if entry.get("keypoints")}
    if len(lists) > 1:
        raise DataError(f"{file}#/categories: found {len(lists)} different lists of keypoints, expected one for all categories")
    return next(iter(lists), ())


def _image_labels(entry: dict) -> list[str]:
    labels = entry.get("labels")
    return [label for label in labels if isinstance(label, str)] if isinstance(labels, list) else []


def _images(entries: list, folder: ImageFolder, file: str, classes: Sequence[str]) -> tuple[dict[Any, _EntryAndImage], list[Fault]]:
    """Return entry and image, without objects yet, by image id; and the faults."""
    images: dict[Any, _EntryAndImage] = {}
    faults = []
    for index, entry in enumerate(entries):
        image = _image(entry, folder, file, f"/images/{index}", images)
        if isinstance(image, Fault):
            faults.append(image)
            continue
        labels = tuple(classes.index(label) for label in _image_labels(entry) if label in classes)
        unknown = [label for label in _image_labels(entry) if label not in classes]
        if unknown:
            faults.append(image.fault("unknown_class", f"found labels {unknown}, expected some of {', '.join(classes)}; labels left out"))
        images[entry["id"]] = entry, replace(image, image_labels=labels, camera=_number_or_unknown(entry.get("camera")))
    return images, faults


def _image(entry: Any, folder: ImageFolder, file: str, pointer: str, images: Collection) -> AnnotatedImage | Fault:
    if not isinstance(entry, dict) or not _is_id(entry.get("id")) or not isinstance(entry.get("file_name"), str):
        return Fault("bad_image", "found an image without id or file_name, expected both; left out", file, pointer=pointer)
    key, name = entry["id"], entry["file_name"]
    if key in images:
        return Fault("duplicate_id", f"found image id {key!r} a second time, expected each once; left out", file, pointer=pointer)
    file_name = folder.find(name)
    if file_name is None:
        return Fault("missing_image", f"found no image called {name!r} in {folder.url}, expected one; left out", file, pointer=pointer)
    width, height = entry.get("width"), entry.get("height")
    declared_px = (width, height) if isinstance(width, int) and isinstance(height, int) and min(width, height) > 0 else None
    return AnnotatedImage(file_name, (), file, None, pointer, declared_px)


def _objects(
    entries: list, file: str, image_ids: Collection, names: dict[Any, str], labels: dict[int, int], keypoint_count: int
) -> Iterator[tuple[Any, AnnotatedObject] | Fault]:
    """Yield (image id, object) or a fault for each entry; an object with unreadable keypoints comes after their fault."""
    annotation_ids: set[Any] = set()
    for index, entry in enumerate(entries):
        pointer = f"/annotations/{index}"
        error = _entry_error(entry, image_ids, labels, annotation_ids)
        if error:
            code, message = error
            key = entry.get("image_id") if isinstance(entry, dict) else None
            yield Fault(code, f"{message}; object left out", file, pointer=pointer, image=names.get(key, "") if _is_id(key) else "")
            continue
        annotation_ids.add(entry.get("id"))
        keypoints = _numbers(entry.get("keypoints"), 3 * keypoint_count) if keypoint_count else None
        if keypoint_count and keypoints is None and entry.get("keypoints"):
            message = f"found no {3 * keypoint_count} numbers; keypoints left out"
            yield Fault("bad_keypoints", message, file, pointer=f"{pointer}/keypoints", image=names.get(entry["image_id"], ""))
        yield entry["image_id"], _object(entry, pointer, labels, keypoints)


def _entry_error(entry: Any, image_ids: Collection, labels: dict[int, int], annotation_ids: Collection) -> tuple[str, str] | None:
    """Return code and message if an annotation cannot be used."""
    if not isinstance(entry, dict):
        return "bad_annotation", f"found {type(entry).__name__}, expected an object"
    key, image, category = entry.get("id"), entry.get("image_id"), entry.get("category_id")
    if key is not None and _is_id(key) and key in annotation_ids:
        return "duplicate_id", f"found annotation id {key!r} a second time, expected each once"
    if not _is_id(image) or image not in image_ids:
        return "unknown_image", f"found image_id {image!r}, expected the id of an image in the file"
    if not _is_id(category) or category not in labels:
        return "unknown_class", f"found category_id {category!r}, expected one of {', '.join(map(str, labels))}"
    return _box_error(entry.get("bbox"))


def _box_error(bbox: Any) -> tuple[str, str] | None:
    if not isinstance(bbox, list) or len(bbox) != 4:
        return "missing_box", f"found bbox {bbox!r}, expected [x, y, width, height]"
    if _numbers(bbox, 4) is None:
        return "not_a_number", f"found bbox {bbox}, expected four numbers"
    if bbox[2] <= 0 or bbox[3] <= 0:
        return "zero_area_box", f"found bbox {bbox}, expected width and height above 0"
    return None


def _numbers(values: Any, count: int) -> tuple[float, ...] | None:
    """Return a list of `count` finite numbers as floats, or None for any other value."""
    valid = isinstance(values, list) and len(values) == count and all(map(is_number, values))
    return tuple(map(float, values)) if valid else None


def _object(entry: dict, pointer: str, labels: dict[int, int], keypoints: tuple[float, ...] | None) -> AnnotatedObject:
    x, y, width, height = entry["bbox"]
    return AnnotatedObject(
        box=(float(x), float(y), float(x + width), float(y + height)),
        label=labels[entry["category_id"]],
        pointer=pointer,
        crowd=is_crowd(entry.get("iscrowd")),
        area=entry["area"] if is_number(entry.get("area")) and entry["area"] > 0 else None,
        mask=entry.get("segmentation") or None,
        keypoints=keypoints,
        identity=_number_or_unknown(entry.get("identity")),
    )


def _number_or_unknown(value: Any) -> int:
    """Return the number of an individual or a camera, or -1 if the value is no such number."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << MEMBER_BITS else -1

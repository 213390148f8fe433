"""Read COCO JSON: boxes, crowd regions, masks, keypoints.

Extensions are `identity` per annotation, and `labels`, `camera`, `tasks` per image. Labels are the categories in order of their ids,
which need not be contiguous. An image without annotations is a background; `coco_tasks` determines the tasks of each image.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from yolor_ray.data.shards.union import unite_names
from yolor_ray.errors import DataError
from yolor_ray.io.storage import read_bytes
from yolor_ray.pack.annotations.coco.images import read_images
from yolor_ray.pack.annotations.coco.objects import Categories, count_unplaced, read_objects
from yolor_ray.pack.annotations.coco_tasks import assign_tasks
from yolor_ray.pack.annotations.faults import Fault
from yolor_ray.pack.annotations.image_folder import ImageFolder
from yolor_ray.pack.annotations.schema import AnnotatedObject, Annotations
from yolor_ray.pack.annotations.values import id_value

logger = logging.getLogger(__name__)


def read_coco(folder: ImageFolder, file: str, image_classes: Sequence[str] = ()) -> Annotations:
    """Read the annotations of a COCO JSON file.

    Args:
        folder: the images.
        file: URL of the JSON file.
        image_classes: image-level class names by label; empty collects and sorts those in the file.
    """
    content = _load(file)
    names = _categories(content, file)
    class_keypoints = _class_keypoints(content["categories"], names.values(), file)
    keypoints = unite_names(class_keypoints.values())
    indices = [[keypoints.index(keypoint) for keypoint in class_keypoints.get(name, ())] for name in names.values()]
    categories = Categories({category: label for label, category in enumerate(names)}, indices, len(keypoints))
    images = read_images(content["images"], folder, file, image_classes)
    faults = list(images.faults)
    objects: dict[str, list[AnnotatedObject]] = defaultdict(list)
    for item in read_objects(content["annotations"], file, images, categories):
        if isinstance(item, Fault):
            faults.append(item)
        else:
            objects[item[0]].append(item[1])
    pairs = [(entry, replace(image, objects=tuple(objects[image.name]))) for entry, image in images.by_name.values()]
    pose_labels = {label for label, own in enumerate(indices) if own}
    annotated, task_faults = assign_tasks(pairs, bool(images.classes), pose_labels)
    return Annotations(
        tuple(names.values()),
        tuple(annotated),
        (*faults, *task_faults),
        images.classes,
        keypoints,
        count_unplaced(content["annotations"], images),
        class_keypoints,
    )


def _load(file: str) -> dict[str, list]:
    try:
        content = json.loads(read_bytes(file).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: found no JSON ({error or 'nested too deep'}), expected COCO annotations") from error
    for name in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise DataError(f"{file}#/{name}: found no list, expected COCO JSON with images, annotations and categories")
    return content


def _categories(content: dict[str, list], file: str) -> dict[float | str, str]:
    """Return the names by category id: numbers in order, then texts in order."""
    names: dict[float | str, str] = {}
    for index, entry in enumerate(content["categories"]):
        key, name = (id_value(entry.get("id")), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if key is None or not isinstance(name, str) or not name:
            found = f"found id {entry.get('id')!r} and name {name!r}" if isinstance(entry, dict) else f"found {entry!r}"
            raise DataError(f"{file}#/categories/{index}: {found}, expected an id and a name")
        if key in names or name in names.values():
            raise DataError(f"{file}#/categories/{index}: found id {key} or name {name!r} a second time, expected each once")
        names[key] = name
    if not names:
        raise DataError(f"{file}#/categories: found none, expected at least one")
    unused = _unused_supercategories(content, names)
    ordered = sorted((key for key in names if key not in unused), key=lambda key: (isinstance(key, str), key))
    return {key: names[key] for key in ordered}


def _unused_supercategories(content: dict[str, list], names: dict[float | str, str]) -> set[float | str]:
    """Return the ids of categories that are the supercategory of others and have no annotation, as Roboflow's exports have one.

    Such a category would take an output of the network, and the dataset would not fit weights of its YOLO export.
    """
    supercategories = [entry.get("supercategory") for entry in content["categories"] if entry.get("supercategory") != entry["name"]]
    annotated = {id_value(entry.get("category_id")) for entry in content["annotations"] if isinstance(entry, dict)}
    unused = {key for key, name in names.items() if name in supercategories and key not in annotated}
    if len(unused) == len(names):
        return set()
    for key in unused:
        reason = "it is only the supercategory of others and has no annotation"
        logger.warning("event=supercategory_left_out name='%s' id=%s reason='%s'", names[key], key, reason)
    return unused


def _class_keypoints(entries: list, classes: Iterable[str], file: str) -> dict[str, tuple[str, ...]]:
    """Return the names of the keypoints of each class whose category lists some."""
    given = {entry["name"]: (index, entry["keypoints"]) for index, entry in enumerate(entries) if entry.get("keypoints")}
    class_keypoints = {}
    for name in classes:
        index, keypoints = given.get(name, (0, []))
        if not isinstance(keypoints, list):
            raise DataError(f"{file}#/categories/{index}: found keypoints {keypoints!r}, expected a list of names")
        if len(set(map(str, keypoints))) < len(keypoints):
            raise DataError(f"{file}#/categories/{index}: found keypoints {keypoints!r}, expected each name once")
        if keypoints:
            class_keypoints[name] = tuple(map(str, keypoints))
    return class_keypoints

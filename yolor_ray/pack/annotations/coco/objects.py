"""Read the annotations of a COCO file as objects of its images."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from yolor_ray.data.coco_rules import is_crowd
from yolor_ray.pack.annotations.coco.images import CocoImages, number_or_unknown
from yolor_ray.pack.annotations.faults import Fault
from yolor_ray.pack.annotations.masks import is_empty, segmentation_bounds
from yolor_ray.pack.annotations.schema import NO_BOX, AnnotatedImage, AnnotatedObject, spread_keypoints
from yolor_ray.pack.annotations.values import id_value, is_number

Box = tuple[float, float, float, float]


class Categories(NamedTuple):
    """Categories of a COCO file."""

    labels: Mapping[float | str, int]
    """Label by category id."""
    keypoint_indices: Sequence[Sequence[int]]
    """By label, the index of each keypoint of the class among the keypoints of all classes."""
    keypoint_count: int
    """Keypoints of all classes together."""


def read_objects(entries: list, file: str, images: CocoImages, categories: Categories) -> Iterator[tuple[str, AnnotatedObject] | Fault]:
    """Yield (name of the image file, object) or a fault for each entry; the faults of an object that is kept come before it.

    Annotations of images that are left out are passed over: the image has a fault already. The `id` of an annotation has no meaning.
    """
    for index, entry in enumerate(entries):
        pointer = f"/annotations/{index}"
        if not isinstance(entry, dict):
            message = f"found {type(entry).__name__}, expected an object; object left out"
            yield Fault("bad_annotation", message, file, pointer=pointer)
            continue
        key = id_value(entry.get("image_id"))
        if key is None or key not in images.names:
            message = f"found image_id {entry.get('image_id')!r}, expected the id of an image in the file; object left out"
            yield Fault("unknown_image", message, file, pointer=pointer)
        elif (name := images.names[key]) is not None:
            for item in _read_object(entry, images.by_name[name][1], pointer, categories):
                yield item if isinstance(item, Fault) else (name, item)


def count_unplaced(entries: list, images: CocoImages) -> int:
    """Return the number of annotations that name no image: without an id, or with a text where all ids of images are numbers, and so on."""
    kinds = {isinstance(key, str) for key in images.names}
    keys = [id_value(entry.get("image_id")) if isinstance(entry, dict) else None for entry in entries]
    return sum(key is None or isinstance(key, str) not in kinds for key in keys)


def _read_object(entry: dict[str, Any], image: AnnotatedImage, pointer: str, categories: Categories) -> Iterator[AnnotatedObject | Fault]:
    """Yield the faults of an entry, and the object unless it cannot be used."""
    located = AnnotatedObject(_corners(entry.get("bbox")), 0, pointer=pointer)
    category = id_value(entry.get("category_id"))
    if category is None or category not in categories.labels:
        found = f"found category_id {entry.get('category_id')!r}, expected one of {', '.join(map(str, categories.labels))}"
        yield image.fault("unknown_class", f"{found}; object left out", located)
        return
    box, error = _box(entry, image)
    if error:
        code, message = error
        yield image.fault(code, f"{message}; {'object left out' if box is None else 'the extent of its mask serves as box'}", located)
    if box is None:
        return
    label = categories.labels[category]
    indices = categories.keypoint_indices[label]
    keypoints, problem = _keypoints(entry.get("keypoints"), len(indices))
    if problem:
        yield image.fault("bad_keypoints", f"found {problem}; keypoints left out", replace(located, pointer=f"{pointer}/keypoints"))
    yield AnnotatedObject(
        box=box,
        label=label,
        pointer=pointer,
        crowd=is_crowd(entry.get("iscrowd")),
        area=entry["area"] if is_number(entry.get("area")) and entry["area"] > 0 else None,
        mask=None if is_empty(entry.get("segmentation")) else entry["segmentation"],
        keypoints=spread_keypoints(keypoints, indices, categories.keypoint_count),
        identity=number_or_unknown(entry.get("identity")),
    )


def _corners(bbox: Any) -> Box:
    """Return the corners of a `bbox` of x, y, width, height; NaN if it is no list of four numbers."""
    x, y, width, height = _numbers(bbox, 4) or NO_BOX
    return x, y, x + width, y + height


def _box(entry: dict[str, Any], image: AnnotatedImage) -> tuple[Box | None, tuple[str, str] | None]:
    """Return the box, and code and message if `bbox` cannot be used.

    The extent of the mask takes the place of an unusable box. A box that is absent, empty or all zeros is then no fault: tools for masks
    write it so.
    """
    bbox: Any = entry.get("bbox")
    error = _box_error(bbox)
    if error is None:
        return _corners(bbox), None
    bounds = segmentation_bounds(entry.get("segmentation"), image.declared_px)
    if bounds is None:
        return None, error
    is_absent = bbox is None or (isinstance(bbox, list) and not any(bbox))
    return bounds, None if is_absent else ("box_from_mask", error[1])


def _box_error(bbox: Any) -> tuple[str, str] | None:
    if not isinstance(bbox, list) or len(bbox) != 4:
        return "missing_box", f"found bbox {bbox!r}, expected [x, y, width, height]"
    if _numbers(bbox, 4) is None:
        return "not_a_number", f"found bbox {bbox}, expected four numbers"
    if bbox[2] < 0 or bbox[3] < 0:
        return "missing_box", f"found bbox {bbox}, expected [x, y, width, height] with width and height above 0"
    if not bbox[2] or not bbox[3]:
        return "zero_area_box", f"found bbox {bbox}, expected width and height above 0"
    return None


def _keypoints(values: Any, count: int) -> tuple[tuple[float, ...] | None, str]:
    """Return x, y, visibility of each keypoint, or None, and the problem if a list is there that cannot be used."""
    if not values:
        return None, ""
    if not count:
        labelled = isinstance(values, list) and any(is_number(visibility) and visibility > 0 for visibility in values[2::3])
        return None, "keypoints of a category without names of keypoints" if labelled else ""
    numbers = _numbers(values, 3 * count)
    if numbers is None:
        return None, f"no {3 * count} numbers"
    odd = [visibility for visibility in numbers[2::3] if visibility not in (0, 1, 2)]
    return (None, f"visibility {odd[0]:g}, expected 0, 1 or 2") if odd else (numbers, "")


def _numbers(values: Any, count: int) -> tuple[float, ...] | None:
    """Return a list of `count` finite numbers as floats, or None for any other value."""
    valid = isinstance(values, list) and len(values) == count and all(map(is_number, values))
    return tuple(map(float, values)) if valid else None

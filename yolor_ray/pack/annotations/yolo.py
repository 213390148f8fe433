"""Read YOLO text files: one per image, one object per line, `class cx cy w h` as fractions of the image's sides.

An image without a text file, or with an empty one, is a background.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from yolor_ray.errors import DataError
from yolor_ray.io.storage import join, read_bytes
from yolor_ray.pack.annotations.faults import Fault
from yolor_ray.pack.annotations.image_folder import FileIndex, ImageFolder, list_annotation_files, read_files, stem
from yolor_ray.pack.annotations.schema import AnnotatedImage, AnnotatedObject, Annotations

SLACK = 0.01
"""Allowed excess of a fraction over 0 to 1, for rounding; boxes are clipped to the image later."""


def read_yolo(folder: ImageFolder, annotations: str, names: str) -> Annotations:
    """Read the annotations of a folder of YOLO text files.

    Args:
        folder: the images; a text file lies at the same relative path in `annotations`.
        annotations: URL of the folder of text files.
        names: URL of the class names: one per line, or a .yaml file with `names:`.
    """
    classes = read_names(names)
    files = [file for file in list_annotation_files(annotations, ".txt") if file != "classes.txt" and join(annotations, file) != names]
    index = FileIndex(files)
    label_files = {name: file for name in folder.files if (file := index.find_stem(stem(name)))}
    images = [AnnotatedImage(name, (), join(folder.url, name), fractions=True) for name in folder.files if name not in label_files]
    without_image = sorted(set(files) - set(label_files.values()))
    message = f"found no image of the same name in {folder.url}, expected one; labels left out"
    faults = [Fault("missing_image", message, join(annotations, file)) for file in without_image]
    for (name, file), data in zip(label_files.items(), read_files(annotations, list(label_files.values())), strict=True):
        url = join(annotations, file)
        items = list(_objects(data, url, len(classes)))
        objects = tuple(item for item in items if isinstance(item, AnnotatedObject))
        file_faults = [item for item in items if isinstance(item, Fault)]
        faults += file_faults
        if not any(fault.code == "bad_encoding" for fault in file_faults):
            images.append(AnnotatedImage(name, objects, url, fractions=True))
    return Annotations(classes, tuple(images), tuple(faults))


def read_names(url: str) -> tuple[str, ...]:
    """Read class names by label, from a text file or from the `names` of a YAML file.

    Raises:
        DataError: the file has no names, or a name occurs twice.
    """
    try:
        text = read_bytes(url).decode("utf-8-sig")
        values = _yaml_names(text) if url.lower().endswith((".yaml", ".yml")) else text.rstrip().splitlines()
    except (ValueError, yaml.YAMLError) as error:
        raise DataError(f"{url}: found {' '.join(str(error).split())}, expected one class name per line, or YAML with names:") from error
    names = tuple(str(value).strip() for value in values)
    if not names or "" in names or len(set(names)) < len(names):
        raise DataError(f"{url}: found class names {list(names)}, expected at least one, each once and none empty")
    return names


def _yaml_names(text: str) -> Sequence[Any]:
    content = yaml.safe_load(text)
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        return [names[label] for label in range(len(names))]
    if not isinstance(names, list):
        raise ValueError(f"names: {type(names).__name__}")
    return names


def _objects(data: bytes, url: str, classes: int) -> Iterator[AnnotatedObject | Fault]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield Fault("bad_encoding", f"found bytes that are not UTF-8 ({error.reason}); image left out", url)
        return
    for line, row in enumerate(text.splitlines(), start=1):
        if row.strip():
            item = _parse_row(row.split(), line, classes)
            yield item if isinstance(item, AnnotatedObject) else Fault(item[0], f"{item[1]}; object left out", url, line)


def _parse_row(words: list[str], line: int, classes: int) -> AnnotatedObject | tuple[str, str]:
    """Return the object of a row, or code and message of its fault."""
    if len(words) != 5:
        return "bad_line", f"found {len(words)} columns, expected 5: class cx cy w h{_column_hint(words)}"
    label = words[0]
    if not label.removeprefix("-").isdecimal():
        hint = f"; write {int(float(label))}" if _number(label).is_integer() else ""
        return "bad_class_id", f"found class {label!r}, expected a whole number{hint}"
    if not 0 <= int(label) < classes:
        return "unknown_class", f"found class {label}, expected 0 to {classes - 1}"
    numbers = [_number(word) for word in words[1:]]
    if not all(map(math.isfinite, numbers)):
        hint = "; write decimal points, not commas" if any("," in word for word in words) else ""
        return "not_a_number", f"found {' '.join(words[1:])}, expected four numbers{hint}"
    return _make_object(numbers, int(label), line)


def _make_object(numbers: list[float], label: int, line: int) -> AnnotatedObject | tuple[str, str]:
    cx, cy, width, height = numbers
    found = f"found cx {cx:g}, cy {cy:g}, w {width:g}, h {height:g}"
    if width <= 0 or height <= 0:
        return "zero_area_box", f"{found}, expected w and h above 0"
    if max(numbers) > 1 + SLACK or min(numbers) < -SLACK:
        hint = "; looks like pixels, not fractions" if max(numbers) > 2 else ""
        return "not_normalised", f"{found}, expected fractions from 0 to 1{hint}"
    return AnnotatedObject((cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2), label, line)


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan


def _column_hint(words: list[str]) -> str:
    if any("," in word for word in words):
        return "; separate by spaces, not commas"
    if len(words) == 6:
        return "; looks like predictions with a confidence"
    return "; looks like polygons" if len(words) >= 7 and len(words) % 2 else ""

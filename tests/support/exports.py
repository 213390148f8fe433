"""Folders of annotated images as annotation tools export them, all with the same images and objects."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from xml.etree import ElementTree

from packed import all_records

CLASSES = ("dog", "cat", "ant")
"""Names of classes by label; the order is not alphabetical."""
WIDTH, HEIGHT = 64, 48
NUMBERS = {"train": range(12), "val": range(12, 16), "test": range(16, 19)}
"""Numbers of the images of each split."""
Object = tuple[str, tuple[int, int, int, int]]


def objects_of(number: int) -> list[Object]:
    """Return class and box of the objects on an image; image 3 is a background."""
    first = (CLASSES[number % 3], (4 + number % 20, 5, 36 + number % 20, 29))
    second = (CLASSES[(number + 1) % 3], (8, 20 + number % 4, 24, 40))
    return [] if number == 3 else [first, second]


def file_name(number: int) -> str:
    return f"{number:03d}.png"


def write_images(write_image: Callable[..., Path], folder: Path, numbers: Iterable[int]) -> None:
    for number in numbers:
        write_image(folder / file_name(number), seed=number)


def yolo_line(label: int, box: Sequence[int]) -> str:
    x1, y1, x2, y2 = box
    return f"{label} {(x1 + x2) / 2 / WIDTH} {(y1 + y2) / 2 / HEIGHT} {(x2 - x1) / WIDTH} {(y2 - y1) / HEIGHT}"


def write_labels(folder: Path, numbers: Iterable[int], classes: Sequence[str] = CLASSES) -> None:
    """Write YOLO label files; the background has an empty one."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        lines = [yolo_line(classes.index(name), box) for name, box in objects_of(number)]
        (folder / f"{number:03d}.txt").write_text("".join(f"{line}\n" for line in lines))


def write_coco(file: Path, numbers: Iterable[int], classes: Sequence[str] = CLASSES, prefix: str = "") -> None:
    """Write COCO JSON whose categories have ids from 1; file names begin with `prefix`."""
    numbers = list(numbers)
    annotations = [(number, name, box) for number in numbers for name, box in objects_of(number)]
    content = {
        "images": [{"id": number, "file_name": prefix + file_name(number), "width": WIDTH, "height": HEIGHT} for number in numbers],
        "annotations": [
            {
                **{"id": index, "image_id": number, "category_id": classes.index(name) + 1, "iscrowd": 0},
                **{"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)},
            }
            for index, (number, name, (x1, y1, x2, y2)) in enumerate(annotations, start=1)
        ],
        "categories": [{"id": index, "name": name, "supercategory": "none"} for index, name in enumerate(classes, start=1)],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def write_voc(folder: Path, numbers: Iterable[int]) -> None:
    """Write PASCAL VOC XML files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = file_name(number)
        for name, (x1, y1, x2, y2) in objects_of(number):
            element = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(element, "name").text = name
            box = ElementTree.SubElement(element, "bndbox")
            for tag, value in (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", x2), ("ymax", y2)):
                ElementTree.SubElement(box, tag).text = str(value)
        ElementTree.ElementTree(root).write(folder / f"{number:03d}.xml")


def packed_objects(url: str, classes: Sequence[str]) -> dict[int, list[Object]]:
    """Return the objects of each image of a packed dataset by the number in its name."""
    return {
        int(Path(record.name).stem): [
            (classes[label], tuple(map(round, box)))
            for label, box in zip(record.objects.labels.tolist(), record.objects.boxes_xyxy.tolist(), strict=True)
        ]
        for record in all_records(url)
    }

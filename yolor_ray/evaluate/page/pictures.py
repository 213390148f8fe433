"""Describe the pictures of a page: an image, reduced, under boxes that the page draws as vectors."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg

from yolor_ray.data.images.decode import decode
from yolor_ray.data.shards.dataset import Dataset, read_row_group, to_records
from yolor_ray.data.shards.records import Record
from yolor_ray.report.html import data_uri

IMAGE_PX = 512
"""Long side of an embedded image."""
JPEG_QUALITY = 80
CONTEXT = 1.0
"""Surroundings of a box in its picture, as a share of the box's long side, on each side."""
MAX_BOXES = 300
"""Most boxes on a picture: the most confident ones."""

Corners = tuple[float, ...]


@dataclass(frozen=True)
class Box:
    """A box on a picture."""

    xyxy: Corners
    """x1, y1, x2, y2 in pixels of the displayed image."""
    label: int
    name: str
    """Text at the box."""
    wrong: bool = False
    """Point the box out as an error."""


@dataclass(frozen=True)
class Picture:
    """An image of the dataset, or a part of it, with boxes."""

    image_id: int
    boxes: tuple[Box, ...]
    view_xyxy: Corners | None = None
    """Shown part, pixels of the displayed image; None shows the whole image."""


@dataclass(frozen=True)
class EmbeddedImage:
    """An image of the page, which several pictures use."""

    uri: str
    width: int
    """Pixels of the displayed image, as for `height`."""
    height: int
    name: str


def whole_picture(image_id: int, boxes: Sequence[Box]) -> Picture:
    """Return the picture of a whole image."""
    return Picture(image_id, tuple(boxes[:MAX_BOXES]))


def zoomed_picture(image_id: int, xyxy: Corners, size: tuple[int, int], boxes: Sequence[Box]) -> Picture:
    """Return the picture of a box and its surroundings, a square inside the image where it fits, with the boxes that reach into it.

    Args:
        image_id: number of the record.
        xyxy: the box.
        size: width and height of the image.
        boxes: boxes of the image; those at the end are drawn on top.
    """
    x1, y1, x2, y2 = xyxy
    side = (1 + 2 * CONTEXT) * max(x2 - x1, y2 - y1)
    sides = [min(side, limit) for limit in size]
    left = min(max((x1 + x2 - sides[0]) / 2, 0), size[0] - sides[0])
    top = min(max((y1 + y2 - sides[1]) / 2, 0), size[1] - sides[1])
    view = left, top, left + sides[0], top + sides[1]
    inside = [box for box in boxes if box.xyxy[2] > view[0] and box.xyxy[0] < view[2] and box.xyxy[3] > view[1] and box.xyxy[1] < view[3]]
    return Picture(image_id, tuple(inside[-MAX_BOXES:]), view)


def embed_images(dataset: Dataset, pictures: Iterable[Picture]) -> dict[int, EmbeddedImage]:
    """Return the images of some pictures by image id; each row group is read once."""
    by_group = defaultdict(set)
    for picture in pictures:
        by_group[dataset.row_groups.number_of(picture.image_id)].add(picture.image_id)
    images = {}
    for number, image_ids in by_group.items():
        group = dataset.row_groups[number]
        records = to_records(read_row_group(dataset, group))
        images.update({image_id: _embed(records[image_id - group.first_record]) for image_id in image_ids})
    return images


def _embed(record: Record) -> EmbeddedImage:
    pixels = decode(record.image, fit_px=IMAGE_PX)
    factor = min(IMAGE_PX / max(pixels.shape[:2]), 1.0)
    size = max(round(pixels.shape[1] * factor), 1), max(round(pixels.shape[0] * factor), 1)
    reduced = np.ascontiguousarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
    return EmbeddedImage(data_uri(simplejpeg.encode_jpeg(reduced, quality=JPEG_QUALITY)), record.width, record.height, record.name)

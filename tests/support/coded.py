"""Records whose pixels encode their annotations: each object is drawn in its own grey level, which encodes its label."""

import cv2
import numpy as np

from pictures import encode
from yolor_ray.data.images.decode import FILL
from yolor_ray.data.rle import encode_mask
from yolor_ray.data.shards.records import Objects, Record

OBJECTS, LEVEL_STEP = 5, 2
ALL_TASKS = ("classify", "detect", "embed", "pose", "segment")


def level_of(label: int) -> int:
    """Return the grey level of a label, which is below that of the background."""
    return LEVEL_STEP * label


def coded_record(number: int, width: int, height: int, **changes) -> Record:
    """Make an image of overlapping ellipses, smaller ones in front, drawn from their masks."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[0:height, 0:width] + 0.5
    masks = []
    for size in np.linspace(0.45, 0.12, OBJECTS):
        x, y = rng.uniform(0.2, 0.8, 2) * (width, height)
        a, b = size * rng.uniform(0.7, 1, 2) * min(width, height)
        masks.append(((columns - x) / a) ** 2 + ((rows - y) / b) ** 2 < 1)
    labels = np.arange(OBJECTS) + OBJECTS * number
    pixels = np.full((height, width, 3), FILL, np.uint8)
    for mask, label in zip(masks, labels.tolist(), strict=True):
        pixels[mask] = level_of(label)
    order = rng.permutation(OBJECTS)
    objects = Objects(
        boxes_xyxy=np.array([bounds(masks[i]) for i in order], np.float32),
        labels=labels[order],
        crowd=np.zeros(OBJECTS, bool),
        areas=np.array([masks[i].sum() for i in order], np.float32),
        masks=tuple(encode_mask(masks[i]) for i in order),
    )
    return Record(f"coded-{number}.png", encode(pixels, "PNG"), width, height, objects, **{"tasks": ALL_TASKS} | changes)


def bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def visible_labels(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return two (S, S) arrays: pixels of the same level as their neighbours, and the label of each pixel, -1 outside `labels`."""
    neighbours = np.ones((3, 3), np.uint8)
    lowest, highest = cv2.erode(image[..., 0], neighbours).astype(int), cv2.dilate(image[..., 0], neighbours)
    label_of = np.full(256, -1)
    label_of[LEVEL_STEP * labels] = labels
    return lowest == highest, label_of[lowest]

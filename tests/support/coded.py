"""Make records whose pixels tell the truth about them: each object is drawn in a grey level of its own, which is also its label."""

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from pictures import encode
from yolor_ray.data.augment.transforms import FILL
from yolor_ray.data.shards.records import Objects, Record

OBJECTS, LEVELS_APART = 5, 2
ALL_TASKS = ("classify", "detect", "embed", "pose", "segment")


def level_of(label: int) -> int:
    """Return the grey level of a label, below that of the ground."""
    return LEVELS_APART * label


def coded_record(number: int, width: int, height: int, **changes) -> Record:
    """Return a picture of overlapping ellipses, the smaller before the larger, drawn from their own masks."""
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
        masks=tuple(run_lengths(masks[i]) for i in order),
    )
    return Record(f"coded-{number}.png", encode(pixels, "PNG"), width, height, objects, **{"tasks": ALL_TASKS} | changes)


def run_lengths(mask: np.ndarray) -> bytes:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]


def bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def cells_seen(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which pixels (S, S) of a picture have one level with their neighbours, and its label, -1 for none of `labels`."""
    around = np.ones((3, 3), np.uint8)
    lowest, highest = cv2.erode(image[..., 0], around).astype(int), cv2.dilate(image[..., 0], around)
    label_of = np.full(256, -1)
    label_of[LEVELS_APART * labels] = labels
    return lowest == highest, label_of[lowest]

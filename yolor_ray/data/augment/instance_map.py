"""Paint the masks of an image's objects into one map of object numbers, and keep that map true as objects move and drop out.

Masks are COCO run lengths: runs of pixels outside and inside by turns, down the columns from the left. All runs of an image are
read at once and painted straight into the map, so hundreds of objects cost little more than one.
Legend: N objects, S side of the square network input in pixels.
"""

from collections.abc import Sequence

import cv2
import numpy as np

MAX_OBJECTS = 2**16 - 1
"""Objects that an uint16 map can tell apart; those after them have no mask."""


def instance_map(masks: Sequence[bytes], width: int, height: int, size: tuple[int, int]) -> np.ndarray:
    """Return (h, w) uint16 of `size` (w, h): 1 + number of the mask, 0 nothing; where masks overlap, the smallest one.

    Args:
        masks: compressed run lengths, each over width x height pixels.
        width: pixels of the image.
        height: pixels of the image.
        size: width and height of the map.
    """
    mask_of, starts, ends = _spans(masks[:MAX_OBJECTS])
    areas = np.bincount(mask_of, ends - starts, minlength=len(masks))
    turns = np.argsort(-areas[mask_of], kind="stable")
    flat = np.zeros(width * height, np.uint16)
    for start, end, number in zip(starts[turns].tolist(), ends[turns].tolist(), (mask_of[turns] + 1).tolist(), strict=True):
        flat[start:end] = number
    # The runs go down the columns, so this map is turned: its rows are the image's columns.
    turned = flat.reshape(width, height)
    sized = turned if size == (width, height) else cv2.resize(turned, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return np.ascontiguousarray(sized.T)


def _spans(masks: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the runs inside masks: number of the mask, first pixel, pixel after the last."""
    runs, counts = run_lengths(masks)
    ends = _sums(runs, counts)
    inside = _places(counts) % 2 == 1
    return np.repeat(np.arange(len(counts)), counts)[inside], (ends - runs)[inside], ends[inside]


def run_lengths(masks: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return the run lengths of all masks one after another, and how many each mask has.

    A number is 5 bits a character from 48, lowest first, bit 6 = more follow; from the fourth run on it is the difference to the
    run before the last.
    """
    codes = np.frombuffer(b"".join(masks), np.uint8).astype(np.int64) - 48
    lasts = np.flatnonzero(codes & 32 == 0)
    lengths = np.diff(lasts, prepend=-1)
    numbers = np.add.reduceat((codes & 31) << (5 * _places(lengths)), lasts - lengths + 1)
    numbers -= np.where(codes[lasts] & 16, 1 << (5 * lengths), 0)
    counts = np.diff(np.searchsorted(lasts, np.cumsum([len(mask) for mask in masks])), prepend=0)
    places = _places(counts)
    inside, outside = places % 2 == 1, (places % 2 == 0) & (places > 0)
    numbers[inside] = _sums(numbers[inside], counts // 2)
    numbers[outside] = _sums(numbers[outside], np.maximum(counts - 1, 0) // 2)
    return numbers, counts


def _places(counts: np.ndarray) -> np.ndarray:
    """Return the place of each item in its group, when groups of so many items follow each other."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _sums(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the sums of each group's values so far, when groups of so many values follow each other."""
    sums = np.cumsum(np.append(0, values))
    return sums[1:] - np.repeat(sums[np.cumsum(counts) - counts], counts)


def warp_instances(instances: np.ndarray, matrix: np.ndarray, side: int) -> np.ndarray:
    """Return the (S, S) map of what `matrix` (2, 3) shows of a map: each pixel holds what lies at its centre.

    `matrix` leads from the map's pixels to those of the input, both as edges.
    """
    return cv2.warpAffine(instances, at_centres(matrix), (side, side), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT)


def at_centres(matrix: np.ndarray) -> np.ndarray:
    """Return the transform that cv2 needs, which counts pixel centres, for one between pixel edges: half a pixel apart."""
    centred = matrix.copy()
    centred[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
    return centred


def renumber_instances(instances: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Return the map without the objects that are not kept ((N,) bool), the others numbered through."""
    numbers = np.zeros(len(keep) + 1, np.int32)
    numbers[1:][keep] = np.arange(1, keep.sum() + 1)
    return numbers[instances]


def shown(instances: np.ndarray, count: int) -> np.ndarray:
    """Return (count,) bool: the objects that have a pixel in the map."""
    return np.bincount(instances.ravel(), minlength=count + 1)[1:] > 0

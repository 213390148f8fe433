"""Rasterise COCO RLE masks into an instance map; warp and renumber the map under augmentation.

An instance map holds, for each pixel, 1 + the index of the object that the pixel shows, or 0 for no object.
Legend: N objects, S side of the square network input in pixels.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from yolor_ray.data.rle import mask_spans

MAX_OBJECTS = 2**16 - 1
"""Objects that a uint16 map can number; objects after them have no mask."""


def instance_map(masks: Sequence[bytes], width: int, height: int, size: tuple[int, int]) -> np.ndarray:
    """Rasterise masks into an instance map, (h, w) uint16 of `size` (w, h); where masks overlap, the smallest one is shown.

    Args:
        masks: compressed run lengths, each over width x height pixels.
        width: pixels of the image.
        height: pixels of the image.
        size: width and height of the map.
    """
    mask_index, starts, ends = mask_spans(masks[:MAX_OBJECTS])
    areas = np.bincount(mask_index, ends - starts, minlength=len(masks))
    largest_first = np.argsort(-areas[mask_index], kind="stable")
    flat = np.zeros(width * height, np.uint16)
    spans = zip(starts[largest_first].tolist(), ends[largest_first].tolist(), (mask_index[largest_first] + 1).tolist(), strict=True)
    for start, end, number in spans:
        flat[start:end] = number
    # Runs go down the columns, so the rows of this array are the image's columns.
    columns = flat.reshape(width, height)
    resized = columns if size == (width, height) else cv2.resize(columns, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return np.ascontiguousarray(resized.T)


def warp_instances(instances: np.ndarray, matrix: np.ndarray, side: int) -> np.ndarray:
    """Warp an instance map into the (S, S) window: each pixel takes the value that lies at its centre.

    `matrix` (2, 3) leads from pixels of the map to pixels of the window, both measured from pixel edges.
    """
    return cv2.warpAffine(instances, to_pixel_centres(matrix), (side, side), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT)


def to_pixel_centres(matrix: np.ndarray) -> np.ndarray:
    """Convert a transform (2, 3) between pixel edges into one between pixel centres, which cv2 expects: half a pixel apart."""
    centred = matrix.copy()
    centred[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
    return centred


def renumber_instances(instances: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Remove the objects outside `keep`, (N,) bool, from an instance map and renumber the remaining objects consecutively."""
    numbers = np.zeros(len(keep) + 1, np.int32)
    numbers[1:][keep] = np.arange(1, keep.sum() + 1)
    return numbers[instances]


def visible_objects(instances: np.ndarray, count: int) -> np.ndarray:
    """Return (count,) bool: the objects with at least one pixel in the map."""
    return np.bincount(instances.ravel(), minlength=count + 1)[1:] > 0

"""Turn COCO segmentations into compressed run-length strings, refusing what would make pycocotools read or write astray."""

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

LARGEST = 1e30


class MaskError(ValueError):
    """A segmentation cannot be used; the message says what was found and expected."""


def is_number(value: Any) -> bool:
    """Tell whether a JSON value is a finite number that fits a float; neither NaN nor true is one."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def run_lengths(segmentation: Any, width: int, height: int) -> bytes:
    """Return the `counts` of a segmentation: polygons, or run lengths as a list or as a compressed string.

    Raises:
        MaskError: it is none of these, or does not fit an image of this size.

    """
    if isinstance(segmentation, list):
        return _from_polygons(segmentation, width, height)
    if isinstance(segmentation, dict):
        return _from_runs(segmentation, width, height)
    raise MaskError(f"found a segmentation of type {type(segmentation).__name__}, expected polygons or run lengths")


def _from_polygons(polygons: list, width: int, height: int) -> bytes:
    for polygon in polygons:
        numbers = isinstance(polygon, list) and all(map(is_number, polygon))
        if not numbers or len(polygon) < 6 or len(polygon) % 2:
            raise MaskError("found a polygon that is no list of 6 or more numbers x, y, x, y, …")
        # pycocotools walks every pixel of an outline, so a far-off corner would cost gigabytes.
        if max(map(abs, polygon)) > 2 * max(width, height):
            raise MaskError(f"found a polygon corner at {max(polygon, key=abs)}, expected it on or near an image of {width} x {height} px")
    if not polygons:
        raise MaskError("found no polygon, expected at least one")
    return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))["counts"]


def _from_runs(segmentation: dict, width: int, height: int) -> bytes:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise MaskError(f"found run lengths of size {size}, expected [height, width] = {[height, width]}")
    runs = _decoded(counts.encode()) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(isinstance(run, int) and run >= 0 for run in runs):
        raise MaskError("found run lengths that are not whole numbers from 0")
    if sum(runs) != width * height:
        raise MaskError(f"found run lengths over {sum(runs)} pixels, expected {width * height}")
    if isinstance(counts, str):
        return counts.encode()
    return coco_mask.frPyObjects({"size": size, "counts": counts}, height, width)["counts"]


def _decoded(counts: bytes) -> list[int]:
    """Return the runs of a compressed string: 5 bits a character from 48, bit 6 = more follow, differences from the third run on."""
    runs: list[int] = []
    value = shift = 0
    for sign in counts:
        bits = sign - 48
        if not 0 <= bits < 64 or shift > 60:
            raise MaskError(f"found compressed run lengths with {chr(sign)!r}, expected characters '0' to 'o'")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise MaskError("found compressed run lengths that end in the middle of a number")
    return runs


def rectangle(box: tuple[float, float, float, float], width: int, height: int) -> bytes:
    """Return the run lengths of a box."""
    x1, y1, x2, y2 = box
    return coco_mask.frPyObjects([[x1, y1, x2, y1, x2, y2, x1, y2]], height, width)[0]["counts"]


def mask_area(counts: bytes, width: int, height: int) -> float:
    """Return the number of pixels inside a mask."""
    return float(coco_mask.area({"size": [height, width], "counts": counts}))


def turned(counts: bytes, width: int, height: int, orientation: int) -> bytes:
    """Return the mask of a stored image (width x height) as displayed with an EXIF orientation of 5 to 8."""
    runs = _decoded(counts)
    inside = (np.arange(len(runs)) % 2).astype(np.uint8)
    stored = np.repeat(inside, runs).reshape(width, height).T
    rows, columns = {5: (1, 1), 6: (-1, 1), 7: (-1, -1), 8: (1, -1)}[orientation]
    return coco_mask.encode(np.asfortranarray(stored[::rows, ::columns].T))["counts"]

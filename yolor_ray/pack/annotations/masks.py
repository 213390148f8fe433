"""Encode COCO segmentations as compressed run lengths.

Segmentations that would make pycocotools read or write out of bounds are refused.
"""

import re
from typing import Any

from yolor_ray.data import rle

MAX_NUMBER = 1e30


class MaskError(ValueError):
    """A segmentation cannot be used; the message says what was found and expected."""


def is_number(value: Any) -> bool:
    """Return True if a JSON value is a finite number that fits a float; NaN and true are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_NUMBER


def encode_segmentation(segmentation: Any, width: int, height: int) -> bytes:
    """Return the `counts` of a segmentation: polygons, or run lengths as a list or as a compressed string.

    Raises:
        MaskError: the segmentation is none of these, or does not fit an image of this size.
    """
    if isinstance(segmentation, list):
        return _encode_polygons(segmentation, width, height)
    if isinstance(segmentation, dict):
        return _encode_runs(segmentation, width, height)
    raise MaskError(f"found a segmentation of type {type(segmentation).__name__}, expected polygons or run lengths")


def _encode_polygons(polygons: list, width: int, height: int) -> bytes:
    for polygon in polygons:
        numbers = isinstance(polygon, list) and all(map(is_number, polygon))
        if not numbers or len(polygon) < 6 or len(polygon) % 2:
            raise MaskError("found a polygon that is no list of 6 or more numbers x, y, x, y, …")
        # pycocotools walks every pixel of an outline, so a distant corner would cost gigabytes.
        if max(map(abs, polygon)) > 2 * max(width, height):
            raise MaskError(
                f"found a polygon corner at {max(polygon, key=abs)}, expected a corner on or near an image of {width} x {height} px"
            )
    if not polygons:
        raise MaskError("found no polygon, expected at least one")
    return rle.encode_polygons(polygons, width, height)


def _encode_runs(segmentation: dict, width: int, height: int) -> bytes:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise MaskError(f"found run lengths of size {size}, expected [height, width] = {[height, width]}")
    runs = _decode_untrusted(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(isinstance(run, int) and run >= 0 for run in runs):
        raise MaskError("found run lengths that are not whole numbers from 0")
    if sum(runs) != width * height:
        raise MaskError(f"found run lengths over {sum(runs)} pixels, expected {width * height}")
    if isinstance(counts, str):
        return counts.encode()
    return rle.encode_runs(runs, width, height)


def _decode_untrusted(counts: str) -> list[int]:
    """Decode compressed run lengths of a user's file, after a check of their characters."""
    if unknown := re.search(r"[^0-o]", counts):
        raise MaskError(f"found compressed run lengths with {unknown[0]!r}, expected characters '0' to 'o'")
    # Characters from 'P' on mean that the number continues in the next character.
    if re.search(r"[P-o]{7}", counts):
        raise MaskError("found compressed run lengths with a number of 8 characters or more, expected at most 7")
    if re.search(r"[P-o]\Z", counts):
        raise MaskError("found compressed run lengths that end in the middle of a number")
    return rle.decode_runs(counts.encode()).tolist()


def box_mask(box: tuple[float, float, float, float], width: int, height: int) -> bytes:
    """Return the run lengths of a box."""
    x1, y1, x2, y2 = box
    return rle.encode_polygons([[x1, y1, x2, y1, x2, y2, x1, y2]], width, height)


def orient_mask(counts: bytes, width: int, height: int, orientation: int) -> bytes:
    """Return the mask of a stored image (width x height) as displayed with an EXIF orientation of 5 to 8."""
    stored = rle.decode_mask(counts, width, height)
    rows, columns = {5: (1, 1), 6: (-1, 1), 7: (-1, -1), 8: (1, -1)}[orientation]
    return rle.encode_mask(stored[::rows, ::columns].T)

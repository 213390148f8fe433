"""Encode COCO segmentations as compressed run lengths.

Segmentations that do not fit their image, or whose run lengths cannot be decoded, are refused.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from yolor_ray.data import rle
from yolor_ray.pack.annotations.values import claimed_size, is_number

MAX_PIXELS = 1 << 30
"""Largest size of run lengths, pixels; larger images are refused anyway."""
FLAT = 1e-9
"""Largest distance of points from a line, relative to its length squared, for which a polygon has no area."""


class MaskError(ValueError):
    """A segmentation cannot be used; the message says what was found and expected."""


class EncodedMask(NamedTuple):
    """Run lengths of a segmentation."""

    counts: bytes
    """Compressed run lengths."""
    left_out: tuple[str, ...] = ()
    """Messages about pieces that are no polygons, beside the usable ones."""


def is_empty(segmentation: Any) -> bool:
    """Return True for a segmentation that says nothing: null, or lists without a number."""
    if isinstance(segmentation, list):
        return all(isinstance(piece, list) and is_empty(piece) for piece in segmentation)
    return not segmentation


def encode_segmentation(segmentation: Any, width: int, height: int) -> EncodedMask:
    """Encode a segmentation: polygons, or run lengths as a list or as a compressed string.

    Raises:
        MaskError: the segmentation is none of these, does not fit an image of this size, or has no pixel on the image.
    """
    mask = _encode(segmentation, width, height)
    if not rle.mask_area(mask.counts, width, height):
        raise MaskError("found a mask without a pixel on the image, expected at least one")
    return mask


def check_segmentation(segmentation: Any, image_px: tuple[int, int] | None) -> None:
    """Check the form of a segmentation, and its fit to the image; a segmentation without pixels passes.

    Args:
        segmentation: polygons, or run lengths as a list or as a compressed string.
        image_px: width and height of the image; None if unknown, which only run lengths can do without.

    Raises:
        MaskError: as `encode_segmentation`, or the image's size is needed and unknown.
    """
    if image_px is None and not isinstance(segmentation, dict):
        raise MaskError("found a segmentation without run lengths on an image without width and height, expected both")
    _encode(segmentation, *(image_px or size_of_runs(segmentation)))


def _encode(segmentation: Any, width: int, height: int) -> EncodedMask:
    if isinstance(segmentation, list):
        polygons, left_out = _usable_polygons(segmentation, 2 * max(width, height))
        return EncodedMask(rle.encode_polygons(polygons, width, height), left_out)
    if isinstance(segmentation, dict):
        return EncodedMask(_encode_runs(segmentation, width, height))
    raise MaskError(f"found a segmentation of type {type(segmentation).__name__}, expected polygons or run lengths")


def segmentation_bounds(segmentation: Any, image_px: tuple[int, int] | None) -> tuple[float, float, float, float] | None:
    """Return the smallest box around a segmentation, x1, y1, x2, y2, or None if no part of the segmentation can be used.

    Args:
        segmentation: polygons or run lengths.
        image_px: width and height of the image that the segmentation belongs to; None if unknown.
    """
    try:
        if isinstance(segmentation, list):
            polygons, _ = _usable_polygons(segmentation, 2 * max(image_px) if image_px else np.inf)
            corners = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in polygons])
            (x1, y1), (x2, y2) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
        elif isinstance(segmentation, dict):
            width, height = image_px or size_of_runs(segmentation)
            x1, y1, x2, y2 = rle.mask_bounds(_encode_runs(segmentation, width, height), width, height)
        else:
            return None
    except MaskError:
        return None
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def _usable_polygons(pieces: list, max_px: float) -> tuple[list[list[float]], tuple[str, ...]]:
    """Return the polygons among the pieces of a segmentation, and a message for each other piece."""
    polygons: list[list[float]] = []
    errors = []
    for index, piece in enumerate(_flat_pieces(pieces)):
        error = _polygon_error(piece, max_px)
        if error:
            errors.append(f"piece {index}: {error}")
        else:
            polygons.append(piece)
    if not polygons:
        raise MaskError(errors[0] if errors else "found no polygon, expected at least one")
    return polygons, tuple(errors)


def _flat_pieces(pieces: list) -> Iterator[Any]:
    """Yield each piece as x, y, x, y, …; some tools write a single polygon without the outer list, or points as pairs."""
    is_one = all(isinstance(value, int | float) for value in pieces) or (len(pieces) > 2 and _are_points(pieces))
    for piece in [pieces] if is_one and pieces else pieces:
        yield [value for point in piece for value in point] if _are_points(piece) else piece


def _are_points(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(isinstance(value, list) and len(value) == 2 for value in values)


def _polygon_error(piece: Any, max_px: float) -> str | None:
    """Return a message if a piece is no polygon with an area, or None."""
    numbers = isinstance(piece, list) and all(map(is_number, piece))
    if not numbers or len(piece) < 6 or len(piece) % 2:
        return "found a polygon that is no list of 6 or more numbers x, y, x, y, …"
    # The encoder walks every pixel of an outline, so a distant corner would cost gigabytes.
    if max(map(abs, piece)) > max_px:
        return f"found a polygon corner at {max(piece, key=abs)}, expected a corner on or near the image"
    offsets = np.reshape(piece, (-1, 2)) - piece[:2]
    x, y = offsets[np.abs(offsets).sum(axis=1).argmax()]
    if np.abs(offsets[:, 0] * y - offsets[:, 1] * x).max() <= FLAT * (x * x + y * y):
        return "found a polygon whose points lie on one line, expected one with an area"
    return None


def size_of_runs(segmentation: dict) -> tuple[int, int]:
    """Return width and height that run lengths state.

    Raises:
        MaskError: the run lengths state none.
    """
    size = segmentation.get("size")
    image_px = claimed_size(size[1], size[0]) if isinstance(size, list) and len(size) == 2 else None
    if image_px is None or image_px[0] * image_px[1] > MAX_PIXELS:
        raise MaskError(f"found run lengths of size {size}, expected height and width")
    return image_px


def _encode_runs(segmentation: dict, width: int, height: int) -> bytes:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if isinstance(counts, bytes):
        # As pycocotools and hotcoco give them.
        counts = counts.decode("latin-1")
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

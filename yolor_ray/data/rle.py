"""COCO run-length encoding (RLE) of masks.

A mask is read column by column, from the left. Its runs count pixels outside and inside by turns, beginning outside.
`counts` is the compressed text form of these runs. Arguments must be valid: annotations of users are
checked in `pack/annotations/masks.py`.
Legend: N masks, R runs, H W pixels of the image.
"""

from collections.abc import Sequence

import numpy as np
from hotcoco import mask as coco_mask

MAX_CHARACTERS = 8
"""Most characters of a number: 40 bits, for images of any size."""


def encode_mask(mask: np.ndarray) -> bytes:
    """Encode a mask, (H, W) bool."""
    return coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"]


def encode_runs(runs: Sequence[int] | np.ndarray, width: int, height: int) -> bytes:
    """Compress run lengths (R,) that cover all pixels of the image."""
    return coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)["counts"]


def encode_polygons(polygons: Sequence[Sequence[float]], width: int, height: int) -> bytes:
    """Encode the union of polygons, each x, y, x, y, … in pixels of the image."""
    return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))["counts"]


def encode_crop(columns: np.ndarray, left: int, top: int, width: int, height: int) -> bytes:
    """Encode a mask that lies within one rectangle of the image; costs nothing for pixels beyond the rectangle.

    Args:
        columns: (columns, rows) bool: the rectangle's pixels, column by column.
        left: first column of the rectangle.
        top: first row of the rectangle.
        width: pixels of the image.
        height: pixels of the image.
    """
    framed = np.zeros((columns.shape[0], columns.shape[1] + 2), np.int8)
    framed[:, 1:-1] = columns
    column, row = np.nonzero(np.diff(framed, axis=1))
    # Starts and ends of runs alternate, because each column ends the runs that it began.
    edges = (column + left) * height + row + top
    # A run that ends at the bottom of the image continues where the next column begins at the top.
    joined = edges[1:-1:2] == edges[2::2]
    keep = np.ones(len(edges), bool)
    keep[1:-1:2] &= ~joined
    keep[2::2] &= ~joined
    runs = np.diff(edges[keep], prepend=0, append=height * width)
    return encode_runs(runs[:-1] if len(runs) > 1 and runs[-1] == 0 else runs, width, height)


def decode_runs(counts: bytes) -> np.ndarray:
    """Decode the run lengths of one mask, (R,) int64."""
    return _decode_all([counts])[0]


def decode_mask(counts: bytes, width: int, height: int) -> np.ndarray:
    """Decode one mask, (H, W) bool."""
    runs = decode_runs(counts)
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def mask_area(counts: bytes, width: int, height: int) -> int:
    """Return the number of pixels inside a mask."""
    return int(coco_mask.area({"size": [height, width], "counts": counts}))


def mask_bounds(counts: bytes, width: int, height: int) -> tuple[float, float, float, float]:
    """Return the smallest box around a mask, x1, y1, x2, y2; its sides are 0 for a mask without pixels."""
    x, y, columns, rows = coco_mask.toBbox({"size": [height, width], "counts": counts}).tolist()
    return x, y, x + columns, y + rows


def are_valid(masks: Sequence[bytes], pixels: np.ndarray) -> np.ndarray:
    """Return (N,) bool: masks whose text is that of run lengths which are 0 or more and cover as many pixels as `pixels` (N,) says."""
    sizes = np.array([len(mask) for mask in masks], np.int64)
    codes = np.frombuffer(b"".join(masks), np.uint8)
    ends = np.cumsum(sizes)
    # Codes below 48 wrap to numbers above 63. A number that never ends, or too late, makes its mask invalid.
    wrong = codes - np.uint8(48) > 63
    lasts = np.flatnonzero((codes - np.uint8(48)) & 32 == 0)
    wrong[lasts[np.diff(lasts, prepend=-1) > MAX_CHARACTERS]] = True
    counts = np.append(0, np.cumsum(wrong))
    valid = (sizes > 0) & (counts[ends] == counts[ends - sizes])
    valid[valid] &= (codes[ends[valid] - 1] - np.uint8(48)) & 32 == 0
    runs, run_counts = _decode_all([mask for mask, is_text in zip(masks, valid, strict=True) if is_text])
    totals = np.append(0, np.cumsum(runs, dtype=np.float64))
    negative = np.append(0, np.cumsum(runs < 0))
    borders = np.cumsum(np.append(0, run_counts))
    valid[valid] = (np.diff(totals[borders]) == pixels[valid]) & (np.diff(negative[borders]) == 0)
    return valid


def move_mask(counts: bytes, size: tuple[int, int], offset: tuple[int, int], image_size: tuple[int, int]) -> bytes:
    """Return the mask of a rectangle of an image as a mask of the image.

    Args:
        counts: mask of the rectangle.
        size: width and height of the rectangle.
        offset: left and top of the rectangle in the image.
        image_size: width and height of the image.
    """
    left, top, right, bottom = map(int, mask_bounds(counts, *size))
    columns = decode_mask(counts, *size)[top:bottom, left:right].T
    return encode_crop(columns, left + offset[0], top + offset[1], *image_size)


def union_of_masks(masks: Sequence[bytes], width: int, height: int) -> bytes:
    """Return the mask of all pixels inside any of the masks of an image, at least one."""
    return coco_mask.merge([{"size": [height, width], "counts": mask} for mask in masks])["counts"]


def mask_spans(masks: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decode the runs inside masks: the index of the mask, the first pixel and the pixel after the last, (runs inside,) int64 each.

    Pixels are numbered down the columns, from the left. The runs of all masks are decoded together, so hundreds of masks cost
    little more than one.
    """
    runs, run_counts = _decode_all(masks)
    ends = _cumulative_sums(runs, run_counts)
    inside = _positions(run_counts) % 2 == 1
    return np.repeat(np.arange(len(run_counts)), run_counts)[inside], (ends - runs)[inside], ends[inside]


def _decode_all(masks: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Decode the run lengths of all masks, concatenated (R,), and the number of runs of each mask (N,).

    A number has 5 bits per character above 48, lowest bits first; bit 6 means that another character follows. From the fourth run
    on, the number is the difference to the run before the last.
    """
    codes = np.frombuffer(b"".join(masks), np.uint8).astype(np.int64) - 48
    lasts = np.flatnonzero(codes & 32 == 0)
    lengths = np.diff(lasts, prepend=-1)
    runs = np.add.reduceat((codes & 31) << (5 * _positions(lengths)), lasts - lengths + 1)
    runs -= np.where(codes[lasts] & 16, 1 << (5 * lengths), 0)
    run_counts = np.diff(np.searchsorted(lasts, np.cumsum([len(mask) for mask in masks])), prepend=0)
    positions = _positions(run_counts)
    inside, outside = positions % 2 == 1, (positions % 2 == 0) & (positions > 0)
    runs[inside] = _cumulative_sums(runs[inside], run_counts // 2)
    runs[outside] = _cumulative_sums(runs[outside], np.maximum(run_counts - 1, 0) // 2)
    return runs, run_counts


def _positions(sizes: np.ndarray) -> np.ndarray:
    """Return the position of each item within its group, for consecutive groups of these sizes."""
    return np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def _cumulative_sums(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the cumulative sums of values within each group, for consecutive groups of these sizes."""
    sums = np.cumsum(np.append(0, values))
    return sums[1:] - np.repeat(sums[np.cumsum(sizes) - sizes], sizes)

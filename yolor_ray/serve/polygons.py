"""Trace masks that come as compressed COCO run lengths: area and outlines, in pixels of the displayed image.

Only the part of the image that a mask covers is ever unpacked. The pixel in column x and row y covers x to x + 1 and y to y + 1,
as for boxes.
"""

import cv2
import numpy as np

from yolor_ray.data.augment.instance_map import run_lengths

TOLERANCE_PX = 0.49
"""An outline is simplified by no more; at half a pixel, what is one pixel wide would fall flat."""


def outlines(counts: bytes, height: int) -> tuple[int, list[list[float]]]:
    """Return a mask's area in pixels and the outer outline of each of its parts, [x1, y1, x2, y2, …] with at least 3 corners.

    Outlines join middles of the pixels' outer sides, so that slanted edges are straight; hence all numbers are multiples of 0.5.

    Args:
        counts: compressed run lengths, columns first.
        height: rows of the image.
    """
    lengths, _ = run_lengths([counts])
    if len(lengths) == 1:
        return 0, []
    crop, left, top = _crop(lengths, height)
    # Of four pixels each, a line of single pixels has an inside, and its outline goes around.
    doubled = cv2.resize(crop, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    traces, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return int(lengths[1::2].sum()), [(_outline(trace[:, 0, ::-1]) / 2 + (left, top)).ravel().tolist() for trace in traces]


def _crop(lengths: np.ndarray, height: int) -> tuple[np.ndarray, int, int]:
    """Return the part of the image that a mask covers, (columns, rows) of 0 or 1, and its left and top."""
    edges = np.cumsum(lengths)
    starts, lasts = edges[:-1:2], edges[1::2] - 1
    left, right = int(starts[0]) // height, int(lasts[-1]) // height + 1
    # Whole columns, as runs go on from one to the next; a mask that does so has pixels in the first and the last row.
    parts = np.diff(np.clip(edges, left * height, right * height), prepend=left * height, append=right * height)
    columns = np.repeat(np.arange(len(parts), dtype=np.uint8) & 1, parts).reshape(right - left, height)
    wraps = (starts // height != lasts // height).any()
    top, bottom = (0, height) if wraps else (int((starts % height).min()), int((lasts % height).max()) + 1)
    return columns[:, top:bottom], left, top


def _outline(trace: np.ndarray) -> np.ndarray:
    """Return corners in half pixels from the traced pixels (N, 2) of a doubled mask."""
    corners = (trace + 1) // 2
    corners = corners[(corners != np.roll(corners, 1, axis=0)).any(axis=1)]
    middles = corners + np.roll(corners, 1, axis=0)
    simple = cv2.approxPolyDP(middles.astype(np.int32), 2 * TOLERANCE_PX, closed=True)[:, 0]
    return simple if len(simple) >= 3 else middles

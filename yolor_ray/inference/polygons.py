"""Convert masks from compressed COCO run lengths to areas and polygons, in pixels of the displayed image.

Only the rectangle that a mask covers is decompressed. The pixel in column x and row y covers x to x + 1 and y to y + 1, as for boxes.
"""

import cv2
import numpy as np

from yolor_ray.data.rle import decode_runs

TOLERANCE_PX = 0.49
"""Largest error of simplified outlines; at half a pixel, a shape that is one pixel wide would lose its area."""


def mask_polygons(counts: bytes, height: int) -> tuple[int, list[list[float]]]:
    """Return a mask's area in pixels and the outer outline of each connected component, [x1, y1, x2, y2, …] with at least 3 corners.

    Outlines join the middles of the pixels' outer sides, so that slanted edges are straight. All coordinates are multiples of 0.5.

    Args:
        counts: compressed run lengths, columns first.
        height: rows of the image.
    """
    lengths = decode_runs(counts)
    if len(lengths) == 1:
        return 0, []
    crop, left, top = _crop(lengths, height)
    # At double size even a line of single pixels has an inside, and its outline runs around the line.
    doubled = cv2.resize(crop, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    traces, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return int(lengths[1::2].sum()), [(_outline(trace[:, 0, ::-1]) / 2 + (left, top)).ravel().tolist() for trace in traces]


def _crop(lengths: np.ndarray, height: int) -> tuple[np.ndarray, int, int]:
    """Return the rectangle of the image that a mask covers, (columns, rows) of 0 or 1, and its left and top."""
    edges = np.cumsum(lengths)
    starts, lasts = edges[:-1:2], edges[1::2] - 1
    left, right = int(starts[0]) // height, int(lasts[-1]) // height + 1
    # Whole columns, because a run may continue in the next column; such a mask has pixels in the first and the last row.
    runs = np.diff(np.clip(edges, left * height, right * height), prepend=left * height, append=right * height)
    columns = np.repeat(np.arange(len(runs), dtype=np.uint8) & 1, runs).reshape(right - left, height)
    crosses_columns = (starts // height != lasts // height).any()
    top, bottom = (0, height) if crosses_columns else (int((starts % height).min()), int((lasts % height).max()) + 1)
    return columns[:, top:bottom], left, top


def _outline(trace: np.ndarray) -> np.ndarray:
    """Return corners in half pixels from the traced pixels (N, 2) of a doubled mask."""
    corners = (trace + 1) // 2
    corners = corners[(corners != np.roll(corners, 1, axis=0)).any(axis=1)]
    middles = corners + np.roll(corners, 1, axis=0)
    simplified: np.ndarray = cv2.approxPolyDP(middles.astype(np.int32), 2 * TOLERANCE_PX, closed=True)[:, 0]
    return simplified if len(simplified) >= 3 else middles

"""Combine the image labels of mosaic tiles by the visible share of each tile.

Legend: T tiles, M labels of the whole image, S side of the square network input in pixels.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")
Point = tuple[float, float]
"""x and y in pixels."""
MIN_VISIBLE_SHARE = 0.25
"""Least visible share of a tile whose image labels hold for the whole mosaic."""


def visible_share(corners: Sequence[Point], area: float, side: int) -> float:
    """Return the visible share, 0 to 1, of a tile of `area` px² in the window from 0 to S.

    `corners` are those of the tile's part on the canvas, transformed to the window.
    """
    for axis, sign, limit in ((0, 1, 0), (0, -1, side), (1, 1, 0), (1, -1, side)):
        corners = _clip_polygon(corners, [sign * (corner[axis] - limit) for corner in corners])
    doubled_area = sum(x * next_y - next_x * y for (x, y), (next_x, next_y) in zip(corners, _rotate(corners), strict=True))
    return abs(doubled_area) / 2 / area


def _clip_polygon(corners: Sequence[Point], distances: Sequence[float]) -> list[Point]:
    """Clip a convex polygon at a line; `distances` of the corners to the line are positive on the side that stays."""
    clipped: list[Point] = []
    for (x, y), (next_x, next_y), distance, next_distance in zip(corners, _rotate(corners), distances, _rotate(distances), strict=True):
        clipped += [(x, y)] if distance >= 0 else []
        if (distance < 0) != (next_distance < 0):
            share = distance / (distance - next_distance)
            clipped.append((x + share * (next_x - x), y + share * (next_y - y)))
    return clipped


def _rotate(items: Sequence[T]) -> Sequence[T]:
    return (*items[1:], *items[:1])


def combine_image_labels(labels: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return the image labels of a mosaic, (M,) float32: 1 yes, 0 no, NaN unknown.

    A label is 1 if a tile with a visible share of MIN_VISIBLE_SHARE or more has the label. A label is NaN if it is unknown for a
    visible tile, or if only tiles with a smaller visible share have the label.

    Args:
        labels: (T, M) 1, 0 or NaN.
        shares: (T,) visible share of each tile, 0 to 1.
    """
    positive = (labels[shares >= MIN_VISIBLE_SHARE] == 1).any(axis=0)
    uncertain = (labels[shares > 0] != 0).any(axis=0)
    return np.where(positive, 1, np.where(uncertain, np.nan, 0)).astype(np.float32)

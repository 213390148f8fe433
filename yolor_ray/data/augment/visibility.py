"""Say of a picture made of several what is true of it as a whole, by how much of each is still to be seen.

Legend: P pictures, M labels of the whole image, S side of the square network input in pixels.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")
Point = tuple[float, float]
"""x and y in pixels."""
LEAST_SHARE = 0.25
"""A picture of which less is seen no longer proves that its labels are true."""


def visible_share(corners: Sequence[Point], area: float, side: int) -> float:
    """Return how much of a picture of `area` px² is seen in the window 0 to S, when its shown part has these corners."""
    for axis, sign, limit in ((0, 1, 0), (0, -1, side), (1, 1, 0), (1, -1, side)):
        corners = _cut(corners, [sign * (corner[axis] - limit) for corner in corners])
    doubled = sum(x * next_y - next_x * y for (x, y), (next_x, next_y) in zip(corners, _next(corners), strict=True))
    return abs(doubled) / 2 / area


def _cut(corners: Sequence[Point], inside: Sequence[float]) -> list[Point]:
    """Return the part of a convex polygon on the side of a line where `inside`, the corners' distances to it, is positive."""
    left: list[Point] = []
    for (x, y), (next_x, next_y), here, there in zip(corners, _next(corners), inside, _next(inside), strict=True):
        left += [(x, y)] if here >= 0 else []
        if (here < 0) != (there < 0):
            share = here / (here - there)
            left.append((x + share * (next_x - x), y + share * (next_y - y)))
    return left


def _next(around: Sequence[T]) -> Sequence[T]:
    return (*around[1:], *around[:1])


def labels_of_all(labels: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return (M,) float32 labels of a picture that shows pictures with `labels` (P, M): 1 yes, 0 no, NaN unknown.

    What is true of one that is seen well is true of the whole. What is unknown of one that is seen at all, or true of one that is
    seen too little to tell, is unknown of the whole.

    Args:
        labels: (P, M) 1, 0 or NaN.
        shares: (P,) how much of each is seen, 0 to 1.
    """
    true = (labels[shares >= LEAST_SHARE] == 1).any(axis=0)
    doubtful = (labels[shares > 0] != 0).any(axis=0)
    return np.where(true, 1, np.where(doubtful, np.nan, 0)).astype(np.float32)

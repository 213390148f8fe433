"""Determine the layout of the rows of a YOLO dataset: polygons, oriented boxes or poses.

A row of five columns is a box in every layout. Longer rows are told apart by all rows of the dataset together, because a polygon, an
oriented box and a pose can have the same number of columns. `kpt_shape` in data.yaml decides for poses. Without it:
- poses: rows of one length that begin with a box inside the image and hold points in that box. With visibilities, each is 0, 1 or 2.
  Without, some rows are no plausible polygon;
- oriented boxes: every row has four corners of a rectangle, and at least half of the rectangles are turned;
- polygons: any other rows.

Legend: R rows, N numbers of a row, P points.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from yolor_ray.pack.annotations.yolo.rows import Row

MIN_SHARE = 0.9
"""Share of rows that must fit a layout, so that a few wrong rows do not turn a dataset into another."""
BOX_SLACK = 0.02
"""Allowed excess of a box or corner over the image, as a fraction of its side."""
POINT_SLACK = 0.1
"""Allowed excess of a keypoint over its box, as a fraction of the box's side."""
CORNER_SLACK = 0.02
"""Allowed difference between opposite sides of a rectangle, as a fraction of its size."""
MIN_TURN = 0.05
"""Tangent of the smallest angle of a turned rectangle."""
MANY_TRIANGLES = 5
"""Rows of three points from which the distance of the second point tells boxes with one keypoint from triangles."""
SAMPLED_ROWS = 200
"""Rows that are tested for plausible polygons."""


class Layout(NamedTuple):
    """Meaning of the rows that are longer than five columns."""

    kind: Literal["polygon", "oriented", "pose"]
    numbers: int = 0
    """Numbers after the class of a pose row; 0 for other layouts."""
    dims: int = 0
    """Numbers per keypoint, 2 or 3; 0 for other layouts."""


def pose_layout(keypoints: int, dims: int) -> Layout:
    """Return the layout of poses with a number of keypoints of 2 or 3 numbers each."""
    return Layout("pose", 4 + keypoints * dims, dims)


def find_layout(rows: Sequence[Row]) -> Layout:
    """Return the layout that the rows of a dataset without `kpt_shape` have."""
    lengths = Counter(len(row.numbers) for row in rows if len(row.numbers) > 4)
    if not lengths:
        return Layout("polygon")
    length, count = lengths.most_common(1)[0]
    if count < MIN_SHARE * lengths.total():
        return Layout("polygon")
    numbers = np.array([row.numbers for row in rows if len(row.numbers) == length])
    if (length - 4) % 3 == 0 and _are_poses(numbers, 3):
        return Layout("pose", length, 3)
    if length == 8 and len(numbers) >= MIN_SHARE * len(rows) and _are_oriented_boxes(numbers):
        return Layout("oriented")
    if length % 2 == 0 and _are_poses(numbers, 2) and not _are_polygons(numbers):
        return Layout("pose", length, 2)
    return Layout("polygon")


def _are_poses(numbers: np.ndarray, dims: int) -> bool:
    """Return True if nearly all rows (R, N) read as a box inside the image and keypoints in the box."""
    center, size = numbers[:, :2], numbers[:, 2:4]
    points = numbers[:, 4:].reshape(len(numbers), -1, dims)
    inside_image = (size > 0) & (center - size / 2 >= -BOX_SLACK) & (center + size / 2 <= 1 + BOX_SLACK)
    labelled = points[..., 2] > 0 if dims == 3 else (points != 0).any(axis=-1)
    near = np.abs(points[..., :2] - center[:, None]) <= (0.5 + POINT_SLACK) * size[:, None]
    fits = inside_image.all(axis=-1) & (near.all(axis=-1) | ~labelled).all(axis=-1)
    if dims == 3:
        fits &= np.isin(points[..., 2], (0, 1, 2)).all(axis=-1)
    return bool(fits.mean() >= MIN_SHARE)


def _are_oriented_boxes(corners: np.ndarray) -> bool:
    """Return True if nearly all rows (R, 8) are rectangles, of which at least half are turned."""
    points = corners.reshape(-1, 4, 2)
    first, second = points[:, 1] - points[:, 0], points[:, 2] - points[:, 1]
    size = np.abs(first) + np.abs(second)
    opposite = np.abs(points[:, 0] + points[:, 2] - points[:, 1] - points[:, 3]) <= CORNER_SLACK * size.max(axis=-1, keepdims=True)
    # Fractions of an image that is not square turn a rectangle into a parallelogram: a right angle leaves opposite signs.
    products = first * second
    rectangle = opposite.all(axis=-1) & (products.prod(axis=-1) <= 0)
    turned = (np.abs(first).min(axis=-1) > MIN_TURN * np.abs(first).max(axis=-1)) & rectangle
    return bool(rectangle.mean() >= MIN_SHARE and turned.mean() >= 0.5)


def _are_polygons(numbers: np.ndarray) -> bool:
    """Return True if nearly all rows (R, N) of a sample read as simple polygons whose second corner is not far from the others."""
    sample = numbers[:: max(len(numbers) // SAMPLED_ROWS, 1)].reshape(-1, numbers.shape[1] // 2, 2)
    others = np.delete(sample, 1, axis=1)
    # 0, 0 stands for an unlabelled keypoint.
    others = np.where((others == 0).all(axis=-1, keepdims=True), others[:, :1], others)
    low, high = others.min(axis=1), others.max(axis=1)
    reach = (high - low).max(axis=1, keepdims=True)
    near = ((sample[:, 1] >= low - reach) & (sample[:, 1] <= high + reach)).all(axis=1)
    simple = np.array([_is_simple(points) for points in sample])
    # Triangles are always simple and often slender, so only many of them tell that they are no polygons.
    few_triangles = sample.shape[1] == 3 and len(sample) < MANY_TRIANGLES
    return bool((simple & (near | few_triangles)).mean() >= MIN_SHARE)


def _is_simple(points: np.ndarray) -> bool:
    """Return True if no two sides of a polygon (P, 2) cross, and the polygon has an area."""
    ends = np.roll(points, -1, axis=0)
    starts_beside = _side(points[:, None], ends[:, None], points[None])
    ends_beside = _side(points[:, None], ends[:, None], ends[None])
    straddles = starts_beside * ends_beside < 0
    return not (straddles & straddles.T).any() and polygon_area(points) > 0


def _side(start: np.ndarray, end: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Return the sign of a point's side of a line through `start` and `end`; all (…, 2)."""
    along, across = end - start, point - start
    return np.sign(along[..., 0] * across[..., 1] - along[..., 1] * across[..., 0])


def polygon_area(points: np.ndarray) -> float:
    """Return the area of a polygon (P, 2), which is 0 if all corners lie on one line."""
    x, y = (points - points[0]).T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)

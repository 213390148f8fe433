"""Make objects of the rows of YOLO text files, with the faults of unusable ones. Coordinates are fractions of the image's sides."""

from collections.abc import Iterator

import numpy as np

from yolor_ray.pack.annotations.faults import Fault
from yolor_ray.pack.annotations.schema import NO_BOX, AnnotatedImage, AnnotatedObject
from yolor_ray.pack.annotations.yolo.layout import Layout, polygon_area
from yolor_ray.pack.annotations.yolo.rows import BOX_COLUMNS, Row

SLACK = 0.01
"""Allowed excess of a fraction over 0 to 1, for rounding; boxes are clipped to the image later."""
MAX_FRACTION = 2.0
"""Largest corner of a polygon that leaves its image; a larger one looks like pixels."""
MIN_AREA = 1e-9
MIN_THICKNESS = 1e-6
"""Smallest area and thickness of a polygon, as fractions; smaller ones are those of rounding."""

_Problem = tuple[str, str]


def make_objects(row: Row, layout: Layout, image: AnnotatedImage, keypoint_count: int) -> Iterator[AnnotatedObject | Fault]:
    """Yield the object of a row, and the faults of what is left out or clipped.

    Args:
        row: the row.
        layout: layout of the dataset.
        image: the image, for the location of faults.
        keypoint_count: J, keypoints per object of the dataset; 0 ignores those in the rows.
    """
    columns = len(row.numbers) + 1
    located = AnnotatedObject(_corners(row) if columns == BOX_COLUMNS else NO_BOX, row.label, row.line)
    if columns == BOX_COLUMNS:
        items = [_box(row)]
    elif layout.kind == "pose":
        items = _pose(row, layout, keypoint_count)
    elif columns % 2:
        items = _polygon(row, with_mask=layout.kind == "polygon")
    else:
        hint = f"{BOX_COLUMNS}, or class x y x y … with 3 or more corners; looks like a polygon with a confidence"
        items = [("bad_line", f"found {columns} columns, expected {hint}; object left out")]
    for item in items:
        yield image.fault(*item, located) if isinstance(item, tuple) else item


def _corners(row: Row) -> tuple[float, float, float, float]:
    cx, cy, width, height = row.numbers[:4]
    return cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2


def _box(row: Row) -> AnnotatedObject | _Problem:
    cx, cy, width, height = row.numbers[:4]
    found = f"found cx {cx:g}, cy {cy:g}, w {width:g}, h {height:g}"
    if width < 0 or height < 0:
        return "not_normalised", f"{found}, expected w and h above 0; object left out"
    if not width or not height:
        return "zero_area_box", f"{found}, expected w and h above 0; object left out"
    if max(row.numbers[:4]) > 1 + SLACK or min(row.numbers[:4]) < -SLACK:
        hint = "; looks like pixels, not fractions" if max(row.numbers[:4]) > MAX_FRACTION else ""
        return "not_normalised", f"{found}, expected fractions from 0 to 1{hint}; object left out"
    return AnnotatedObject(_corners(row), row.label, row.line)


def _pose(row: Row, layout: Layout, keypoint_count: int) -> list[AnnotatedObject | _Problem]:
    if len(row.numbers) != layout.numbers:
        expected = f"{BOX_COLUMNS}, or {layout.numbers + 1} with {(layout.numbers - 4) // layout.dims} keypoints"
        return [("bad_line", f"found {len(row.numbers) + 1} columns, expected {expected}; object left out")]
    obj = _box(row)
    if isinstance(obj, tuple) or not keypoint_count:
        return [obj]
    points = np.array(row.numbers[4:]).reshape(keypoint_count, layout.dims)
    # As in other tools, a point of two numbers is unlabelled at 0, 0 or left of or above the image.
    unlabelled = (points == 0).all(axis=1) | (points < 0).any(axis=1)
    visibility = points[:, 2] if layout.dims == 3 else np.where(unlabelled, 0, 2)
    labelled = points[visibility > 0, :2]
    if not np.isin(visibility, (0, 1, 2)).all():
        found = next(value for value in visibility.tolist() if value not in (0, 1, 2))
        return [("bad_keypoints", f"found visibility {found:g}, expected 0, 1 or 2; keypoints left out"), obj]
    if labelled.size and (labelled.max() > 1 + SLACK or labelled.min() < -SLACK):
        found = f"found a labelled keypoint at {labelled.max() if labelled.max() > 1 else labelled.min():g}"
        return [("bad_keypoints", f"{found}, expected fractions from 0 to 1; keypoints left out"), obj]
    keypoints = np.column_stack([np.where(visibility[:, None] > 0, points[:, :2], 0), visibility])
    return [_with_keypoints(obj, keypoints)]


def _with_keypoints(obj: AnnotatedObject, keypoints: np.ndarray) -> AnnotatedObject:
    return AnnotatedObject(obj.box, obj.label, obj.line, keypoints=tuple(keypoints.reshape(-1).tolist()))


def _polygon(row: Row, with_mask: bool) -> list[AnnotatedObject | _Problem]:
    """Return the enclosing box of a polygon, with the polygon as mask; a part outside the image is cut off."""
    corners = np.array(row.numbers).reshape(-1, 2)
    low, high = corners.min(), corners.max()
    found = f"found corners from {low:g} to {high:g}, expected fractions from 0 to 1"
    if max(high, -low) > MAX_FRACTION:
        return [("not_normalised", f"{found}; looks like pixels, not fractions; object left out")]
    inside = _clip(corners)
    if not len(inside):
        return [("box_outside_image", f"{found}; object left out")]
    (x1, y1), (x2, y2) = inside.min(axis=0).tolist(), inside.max(axis=0).tolist()
    if x1 >= x2 or y1 >= y2:
        return [("zero_area_box", f"found a polygon from {x1:g}, {y1:g} to {x2:g}, {y2:g}, expected an area; object left out")]
    problems: list[AnnotatedObject | _Problem] = []
    if high > 1 + SLACK or low < -SLACK:
        problems.append(("box_clipped", f"{found}; polygon clipped to the image"))
    if with_mask and _is_flat(inside):
        problems.append(("bad_mask", "found a polygon whose corners lie on one line, expected an area; its enclosing box is kept"))
        with_mask = False
    mask = [inside.reshape(-1).tolist()] if with_mask else None
    return [*problems, AnnotatedObject((x1, y1, x2, y2), row.label, row.line, mask=mask)]


def _is_flat(corners: np.ndarray) -> bool:
    """Return True if all corners (P, 2) lie on one line."""
    # Sides that cross also give the area 0.
    return polygon_area(corners) < MIN_AREA and np.linalg.svd(corners - corners.mean(axis=0), compute_uv=False)[-1] < MIN_THICKNESS


def _clip(corners: np.ndarray) -> np.ndarray:
    """Return the corners of the part of a polygon (P, 2) inside the image, side by side of the image (Sutherland and Hodgman)."""
    for axis, sign, limit in ((0, -1, 0.0), (0, 1, 1.0), (1, -1, 0.0), (1, 1, 1.0)):
        inside = sign * (corners[:, axis] - limit) <= 0
        if inside.all():
            continue
        kept: list[np.ndarray] = []
        for index in range(len(corners)):
            start, end = corners[index - 1], corners[index]
            if inside[index - 1] != inside[index]:
                crossing = start + (end - start) * (limit - start[axis]) / (end[axis] - start[axis])
                crossing[axis] = limit
                kept.append(crossing)
            if inside[index]:
                kept.append(end)
        corners = np.array(kept).reshape(-1, 2)
    return corners

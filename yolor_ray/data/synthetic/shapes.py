"""Outlines of the objects in built-in scenes, as signed distances: one formula gives exact masks and smooth edges.

Every shape has its own frame: u points right, v points down, and the shape fills about the unit circle. A shape function returns
two fields over the grid: `inside`, the signed distance to the outline (positive within), and `accent`, positive where the second
colour goes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

KEYPOINT_NAMES = ("head", "left_hand", "right_hand", "left_foot", "right_foot")
REACH = 1.3  # half-widths of the drawn square around a centre, which holds the shape and its shadow


@dataclass(frozen=True)
class Pose:
    """Position, size, rotation and limbs of an object."""

    x: float
    """Pixels."""
    y: float
    """Pixels."""
    half: float
    """Pixels per unit of the shape's frame, about half of the object's side."""
    angle: float
    """Radians, clockwise on the screen."""
    limbs: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Radians below the horizontal, outwards: left arm, right arm, left leg, right leg (persons only)."""


@dataclass(frozen=True)
class Outline:
    """The part of a shape that lies within the image, on the pixel grid."""

    rows: slice
    columns: slice
    u: np.ndarray
    """(h, w) float32: coordinate to the right in the shape's frame."""
    v: np.ndarray
    """(h, w) float32: coordinate downwards in the shape's frame."""
    alpha: np.ndarray
    """(h, w) float32: share of the pixel that the shape covers."""
    inside: np.ndarray
    """(h, w) float32: pixels to the outline, positive within."""
    accent: np.ndarray
    """(h, w) float32: positive where the second colour goes."""
    area: float
    """Pixels that the shape would cover if the image had no border."""


Fields = tuple[np.ndarray, np.ndarray]
_Shape = Callable[[np.ndarray, np.ndarray, tuple[float, float, float, float]], Fields]


def _ball(u: np.ndarray, v: np.ndarray, limbs: object) -> Fields:
    return 0.92 - np.hypot(u, v), 0.2 - np.abs(v + 0.25 * u * u)


def _ring(u: np.ndarray, v: np.ndarray, limbs: object) -> Fields:
    return 0.26 - np.abs(np.hypot(u, v) - 0.68), u * v * (u * u - v * v)


def _crate(u: np.ndarray, v: np.ndarray, limbs: object) -> Fields:
    side = np.maximum(np.abs(u), np.abs(v))
    return 0.74 - side, np.maximum(side - 0.54, 0.1 - 0.7 * np.abs(u - v))


def _star(u: np.ndarray, v: np.ndarray, limbs: object) -> Fields:
    fifth = np.float32(2 * np.pi / 5)
    turn = np.abs((np.arctan2(u, -v) + fifth / 2) % fifth - fifth / 2)
    radius = np.hypot(u, v)
    # The edge runs from the tip at (0.98, 0) to the notch at half the radius, a tenth of a turn further.
    notch = 0.49 * np.array((np.cos(np.pi / 5), np.sin(np.pi / 5)), np.float32)
    along_x, along_y = notch[0] - 0.98, notch[1]
    inside = (along_y * (0.98 - radius * np.cos(turn)) + along_x * radius * np.sin(turn)) / np.hypot(along_x, along_y)
    return inside, inside - 0.2


def _cross(u: np.ndarray, v: np.ndarray, limbs: object) -> Fields:
    u, v = np.abs(u), np.abs(v)
    return np.minimum(0.92 - np.maximum(u, v), 0.27 - np.minimum(u, v)), 0.25 - u - v


def _limb(u: np.ndarray, v: np.ndarray, start: tuple[float, float], end: tuple[float, float], radius: float) -> np.ndarray:
    along_u, along_v = end[0] - start[0], end[1] - start[1]
    share = ((u - start[0]) * along_u + (v - start[1]) * along_v) / (along_u**2 + along_v**2)
    share = np.clip(share, 0, 1)
    return radius - np.hypot(u - start[0] - share * along_u, v - start[1] - share * along_v)


def _limb_ends(limbs: tuple[float, float, float, float]) -> np.ndarray:
    """Return shoulders and hips (4, 2), and hands and feet (4, 2); a person faces the viewer, so its left is at +u."""
    starts = np.array(((0.2, -0.32), (-0.2, -0.32), (0.1, 0.18), (-0.1, 0.18)))
    lengths, outwards = np.array((0.5, 0.5, 0.66, 0.66)), np.array((1, -1, 1, -1))
    ends = starts + lengths[:, None] * np.stack((outwards * np.cos(limbs), np.sin(limbs)), axis=1)
    return np.stack((starts, ends))


def _person(u: np.ndarray, v: np.ndarray, limbs: tuple[float, float, float, float]) -> Fields:
    head = 0.21 - np.hypot(u, v + 0.72)
    body = [head, _limb(u, v, (0, -0.3), (0, 0.12), 0.24)]
    starts, ends = _limb_ends(limbs).tolist()
    body += [_limb(u, v, tuple(a), tuple(b), r) for a, b, r in zip(starts, ends, (0.1, 0.1, 0.13, 0.13), strict=True)]
    legs = np.maximum(body[4], body[5])
    return np.maximum.reduce(body), np.maximum(head, np.minimum(legs, v - 0.28))


SHAPES: dict[str, _Shape] = {"ball": _ball, "ring": _ring, "crate": _crate, "star": _star, "cross": _cross, "person": _person}


def outline(class_name: str, pose: Pose, size_px: int) -> Outline | None:
    """Return the outline of a class on the grid of a square image, or None if the outline lies outside the image."""
    reach = REACH * pose.half + 2
    left, top = int(pose.x - reach), int(pose.y - reach)
    side = int(2 * reach) + 2
    x = (np.arange(left, left + side, dtype=np.float32) + np.float32(0.5 - pose.x)) / np.float32(pose.half)
    y = (np.arange(top, top + side, dtype=np.float32)[:, None] + np.float32(0.5 - pose.y)) / np.float32(pose.half)
    cos, sin = np.float32(np.cos(pose.angle)), np.float32(np.sin(pose.angle))
    u, v = x * cos + y * sin, y * cos - x * sin
    inside, accent = SHAPES[class_name](u, v, pose.limbs)
    inside = inside * np.float32(pose.half)
    alpha = np.clip(inside + np.float32(0.5), 0, 1)
    rows, columns = slice(max(top, 0), min(top + side, size_px)), slice(max(left, 0), min(left + side, size_px))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return None
    cut = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
    return Outline(rows, columns, u[cut], v[cut], alpha[cut], inside[cut], accent[cut], float(alpha.sum()))


def keypoints(pose: Pose) -> np.ndarray:
    """Return (J, 2) in pixels: head, hands and feet of a person, each in the middle of its body part."""
    frame = np.concatenate((((0.0, -0.72),), _limb_ends(pose.limbs)[1]))
    cos, sin = np.cos(pose.angle), np.sin(pose.angle)
    rotated = frame @ np.array(((cos, sin), (-sin, cos)))
    return rotated * pose.half + (pose.x, pose.y)

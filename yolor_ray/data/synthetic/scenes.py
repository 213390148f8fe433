"""Draw the built-in dataset: scenes whose boxes, masks, keypoints, identities and image labels are exact by construction.

A scene is a ground with clutter, one to nine overlapping toys, blades of grass in front of the toys, and the light of a time of
day. A scene is a function of (index, seed): nothing is downloaded or stored. Masks cover visible pixels; boxes bound the masks.
"""

from dataclasses import dataclass

import numpy as np
import simplejpeg

from yolor_ray.config.network import TASKS
from yolor_ray.data.rle import encode_mask
from yolor_ray.data.shards.records import Objects, Record
from yolor_ray.data.synthetic import paint, shapes
from yolor_ray.data.synthetic.shapes import KEYPOINT_NAMES, Outline, Pose

__all__ = ["CLASSES", "CLASS_KEYPOINTS", "IDENTITIES", "IMAGE_CLASSES", "KEYPOINT_NAMES", "scene"]

CLASSES = tuple(shapes.SHAPES)
IMAGE_CLASSES = tuple(paint.GAIN)
CLASS_KEYPOINTS = {"person": KEYPOINT_NAMES}
IDENTITIES = 48
"""Individuals of one seed; individual i is always of class i modulo the number of classes."""
MIN_VISIBLE_SHARE = 0.35
"""Visible share of an object below which the object is not drawn: every drawn object is annotated."""
MIN_AREA_SHARE = 0.0005
"""Share of the image below which an object is not drawn."""
JPEG_QUALITY = 92


@dataclass(frozen=True)
class _Toy:
    """One drawn object."""

    identity: int
    pose: Pose
    shape: Outline
    visible: np.ndarray
    """(S, S) bool: the pixels that show the toy."""
    in_front: np.ndarray
    """(S, S) bool: the pixels of everything in front of the toy."""

    @property
    def class_name(self) -> str:
        return CLASSES[self.identity % len(CLASSES)]


def scene(index: int, seed: int = 0, size_px: int = 320) -> Record:
    """Draw one scene with its annotations; the same arguments give the same record.

    Args:
        index: number of the scene within the dataset.
        seed: number of the dataset; another seed has other individuals.
        size_px: side of the square image.
    """
    rng = np.random.default_rng((seed, index, 0))
    light = int(rng.integers(len(IMAGE_CLASSES)))
    grass = paint.blades(rng, size_px)
    toys = _place_toys(rng, size_px, grass >= 0.5)
    pixels = _render(rng, toys, seed, grass, IMAGE_CLASSES[light])
    image = simplejpeg.encode_jpeg(pixels, JPEG_QUALITY, "rgb", "420")
    name = f"scene-{seed}-{index:06d}.jpg"
    return Record(name, image, size_px, size_px, _annotate(toys, size_px), np.array([light], np.int64), tuple(sorted(TASKS)))


def _place_toys(rng: np.random.Generator, size_px: int, taken: np.ndarray) -> list[_Toy]:
    """Place toys that are visible enough, front to back; pixels of `taken`, (S, S) bool, hide every toy."""
    toys: list[_Toy] = []
    for identity in rng.permutation(IDENTITIES)[: rng.integers(2, 10)].tolist():
        class_name = CLASSES[identity % len(CLASSES)]
        pose = _random_pose(rng, class_name, size_px)
        shape = shapes.outline(class_name, pose, size_px)
        if shape is None:
            continue
        covered = np.zeros_like(taken)
        covered[shape.rows, shape.columns] = shape.alpha >= 0.5
        visible = covered & ~taken
        if visible.sum() >= max(MIN_VISIBLE_SHARE * shape.area, MIN_AREA_SHARE * size_px**2):
            toys.append(_Toy(identity, pose, shape, visible, taken))
            taken = taken | covered
    return toys


def _random_pose(rng: np.random.Generator, class_name: str, size_px: int) -> Pose:
    half = size_px / 2 * np.exp(rng.uniform(np.log(0.075), np.log(0.5)))
    x, y = rng.uniform(0.02, 0.98, 2) * size_px
    turn = 0.45 if class_name == "person" else np.pi
    arms, legs = rng.uniform(-1.2, 1.2, 2), rng.uniform(0.95, 1.5, 2)
    return Pose(float(x), float(y), float(half), rng.uniform(-turn, turn), (*arms.tolist(), *legs.tolist()))


def _render(rng: np.random.Generator, toys: list[_Toy], seed: int, grass: np.ndarray, light: str) -> np.ndarray:
    ground = paint.ground(rng, len(grass))
    canvas = np.stack([ground[..., plane] for plane in range(3)]).astype(np.float32) / 255
    turn = rng.uniform(0, 2 * np.pi)
    light_direction = (float(np.cos(turn)), float(np.sin(turn)))
    for toy in reversed(toys):
        paint.cast_shadow(canvas, toy.shape, toy.pose.half, light_direction)
        paint.paint(canvas, toy.shape, paint.look(seed, toy.identity), light_direction, toy.pose.half)
    if grass.any():
        green = np.array((0.25, 0.45, 0.12)) * rng.uniform(0.6, 1.3)
        canvas += (green.astype(np.float32)[:, None, None] - canvas) * grass
    return paint.photograph(rng, canvas, light)


def _annotate(toys: list[_Toy], size_px: int) -> Objects:
    return Objects(
        boxes_xyxy=np.array([_bounds(toy.visible) for toy in toys], np.float32).reshape(-1, 4),
        labels=np.array([CLASSES.index(toy.class_name) for toy in toys], np.int64),
        crowd=np.zeros(len(toys), bool),
        areas=np.array([toy.visible.sum() for toy in toys], np.float32),
        masks=tuple(encode_mask(toy.visible) for toy in toys),
        keypoints=np.array([_keypoints(toy, size_px) for toy in toys], np.float32).reshape(-1, len(KEYPOINT_NAMES), 3),
        identities=np.array([toy.identity for toy in toys], np.int64),
    )


def _bounds(visible: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def _keypoints(toy: _Toy, size_px: int) -> np.ndarray:
    """Return (J, 3) keypoints: visibility 2 visible, 1 hidden by an object in front, 0 outside the image, -1 for classes without."""
    points = np.zeros((len(KEYPOINT_NAMES), 3))
    if toy.class_name not in CLASS_KEYPOINTS:
        points[:, 2] = -1
        return points
    for point, (x, y) in zip(points, shapes.keypoints(toy.pose), strict=True):
        if 0 <= x < size_px and 0 <= y < size_px:
            point[:] = x, y, 1 if toy.in_front[int(y), int(x)] else 2
    return points

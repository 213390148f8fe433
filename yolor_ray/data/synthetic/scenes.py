"""Make the built-in data set: drawn scenes whose boxes, masks, keypoints, identities and image labels are right by construction.

A scene is a ground with clutter, one to nine toys that overlap, blades of grass before them, and the light of a time of day.
It is a function of (index, seed): nothing is downloaded or stored. Masks show what is visible; boxes are the masks' bounds.
"""

from dataclasses import dataclass

import numpy as np
import simplejpeg
from pycocotools import mask as coco_mask

from yolor_ray.config.network import TASKS
from yolor_ray.data.shards.records import Objects, Record
from yolor_ray.data.synthetic import paint, shapes
from yolor_ray.data.synthetic.shapes import KEYPOINT_NAMES, Outline, Pose

__all__ = ["CLASSES", "IDENTITIES", "IMAGE_CLASSES", "KEYPOINT_NAMES", "scene"]

CLASSES = tuple(shapes.SHAPES)
IMAGE_CLASSES = tuple(paint.GAIN)
IDENTITIES = 48
"""Individuals of one seed; individual i is always of class i modulo the number of classes."""
LEAST_VISIBLE = 0.35
"""An object of which less is seen is not drawn: what is in the picture is annotated, without exception."""
LEAST_AREA = 0.0005
"""Share of the image that an object must cover to be drawn."""
JPEG_QUALITY = 92


@dataclass(frozen=True)
class _Toy:
    identity: int
    pose: Pose
    shape: Outline
    visible: np.ndarray
    """(S, S) bool: the pixels that show it."""
    in_front: np.ndarray
    """(S, S) bool: the pixels of all that stands before it."""

    @property
    def kind(self) -> str:
        return CLASSES[self.identity % len(CLASSES)]


def scene(index: int, seed: int = 0, size_px: int = 320) -> Record:
    """Return one scene with its annotations; the same arguments give the same record.

    Args:
        index: number of the scene within the data set.
        seed: data set; another seed has other individuals too.
        size_px: side of the square image.
    """
    rng = np.random.default_rng((seed, index, 0))
    light = int(rng.integers(len(IMAGE_CLASSES)))
    cover = paint.blades(rng, size_px)
    toys = _place(rng, size_px, cover >= 0.5)
    pixels = _render(rng, toys, seed, cover, IMAGE_CLASSES[light])
    image = simplejpeg.encode_jpeg(pixels, JPEG_QUALITY, "rgb", "420")
    name = f"scene-{seed}-{index:06d}.jpg"
    return Record(name, image, size_px, size_px, _annotate(toys, size_px), np.array([light], np.int64), tuple(sorted(TASKS)))


def _place(rng: np.random.Generator, size_px: int, taken: np.ndarray) -> list[_Toy]:
    """Return the toys that are seen well enough, front to back; `taken` (S, S) bool is what hides everything."""
    toys: list[_Toy] = []
    for identity in rng.permutation(IDENTITIES)[: rng.integers(2, 10)].tolist():
        pose = _pose(rng, CLASSES[identity % len(CLASSES)], size_px)
        shape = shapes.outline(CLASSES[identity % len(CLASSES)], pose, size_px)
        if shape is None:
            continue
        whole = np.zeros_like(taken)
        whole[shape.rows, shape.columns] = shape.alpha >= 0.5
        visible = whole & ~taken
        if visible.sum() >= max(LEAST_VISIBLE * shape.area, LEAST_AREA * size_px**2):
            toys.append(_Toy(identity, pose, shape, visible, taken))
            taken = taken | whole
    return toys


def _pose(rng: np.random.Generator, kind: str, size_px: int) -> Pose:
    half = size_px / 2 * np.exp(rng.uniform(np.log(0.075), np.log(0.5)))
    x, y = rng.uniform(0.02, 0.98, 2) * size_px
    turn = 0.45 if kind == "person" else np.pi
    arms, legs = rng.uniform(-1.2, 1.2, 2), rng.uniform(0.95, 1.5, 2)
    return Pose(float(x), float(y), float(half), rng.uniform(-turn, turn), (*arms.tolist(), *legs.tolist()))


def _render(rng: np.random.Generator, toys: list[_Toy], seed: int, cover: np.ndarray, light: str) -> np.ndarray:
    drawn = paint.ground(rng, len(cover))
    canvas = np.stack([drawn[..., plane] for plane in range(3)]).astype(np.float32) / 255
    turn = rng.uniform(0, 2 * np.pi)
    towards = (float(np.cos(turn)), float(np.sin(turn)))
    for toy in reversed(toys):
        paint.cast_shadow(canvas, toy.shape, toy.pose.half, towards)
        paint.paint(canvas, toy.shape, paint.look(seed, toy.identity), towards, toy.pose.half)
    if cover.any():
        green = np.array((0.25, 0.45, 0.12)) * rng.uniform(0.6, 1.3)
        canvas += (green.astype(np.float32)[:, None, None] - canvas) * cover
    return paint.photograph(rng, canvas, light)


def _annotate(toys: list[_Toy], size_px: int) -> Objects:
    masks = tuple(coco_mask.encode(np.asfortranarray(toy.visible.view(np.uint8)))["counts"] for toy in toys)
    return Objects(
        boxes_xyxy=np.array([_bounds(toy.visible) for toy in toys], np.float32).reshape(-1, 4),
        labels=np.array([CLASSES.index(toy.kind) for toy in toys], np.int64),
        crowd=np.zeros(len(toys), bool),
        areas=np.array([toy.visible.sum() for toy in toys], np.float32),
        masks=masks,
        keypoints=np.array([_keypoints(toy, size_px) for toy in toys], np.float32).reshape(-1, len(KEYPOINT_NAMES), 3),
        identities=np.array([toy.identity for toy in toys], np.int64),
    )


def _bounds(visible: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def _keypoints(toy: _Toy, size_px: int) -> np.ndarray:
    """Return (J, 3): 2 seen, 1 hidden by something in front, 0 (with zeros) outside the image or not a person."""
    points = np.zeros((len(KEYPOINT_NAMES), 3))
    if toy.kind != "person":
        return points
    for point, (x, y) in zip(points, shapes.keypoints(toy.pose), strict=True):
        if 0 <= x < size_px and 0 <= y < size_px:
            point[:] = x, y, 1 if toy.in_front[int(y), int(x)] else 2
    return points

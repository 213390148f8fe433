"""Cut large images into overlapping tiles, and merge the detections of the tiles.

An object in an overlap is found twice, and an object on a border is cut into parts. Two detections of one class from two tiles are the
same object if their boxes agree in the pixels that both tiles see. Legend: N detections of all tiles, A and B those of one tile each.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from yolor_ray import boxes
from yolor_ray.data.rle import move_mask, union_of_masks
from yolor_ray.inference.postprocess import ImageDetections, select_detections

AGREEMENT = 0.5
"""Least IoU, in the pixels that two tiles see, of boxes that are the same object."""
MARGIN = 0.015
"""Largest distance of a cut side from the border of its tile, as a share of the tile's side; networks place cut sides that exactly."""
COVERED = 0.7
"""Share of a part that lies in a larger detection of its class, from which the part is a piece of it."""


@dataclass(frozen=True)
class Tile:
    """Rectangle of an image, pixels."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def xyxy(self) -> np.ndarray:
        """Return (4,) float64."""
        return np.array((self.left, self.top, self.right, self.bottom), np.float64)


def cut_tiles(width: int, height: int, tile_px: int, overlap: float) -> list[Tile]:
    """Return the tiles of an image by rows; neighbours overlap by at least a share `overlap` of the tile's side."""
    columns, rows = (_starts(side, tile_px, overlap) for side in (width, height))
    return [Tile(left, top, min(left + tile_px, width), min(top + tile_px, height)) for top in rows for left in columns]


def _starts(side: int, tile_px: int, overlap: float) -> list[int]:
    """Return the first pixels of evenly spaced tiles along an axis."""
    if side <= tile_px:
        return [0]
    count = int(np.ceil((side - tile_px) / max(int(tile_px * (1 - overlap)), 1))) + 1
    return np.linspace(0, side - tile_px, count).round().astype(int).tolist()


def merge_tiles(
    found: Sequence[tuple[Tile, ImageDetections]], width: int, height: int, *, iou: float, max_detections: int
) -> ImageDetections:
    """Merge the detections of the tiles of an image into detections of the image, best first.

    A part of an object that another tile sees whole is dropped. Parts that no tile sees whole are joined.

    Args:
        found: each tile, and its detections in pixels of the tile.
        width: pixels of the image.
        height: pixels of the image.
        iou: boxes of one class that overlap more than this are one object.
        max_detections: most detections of the image.
    """
    everything = _concatenate([_in_image(detections, tile, width, height) for tile, detections in found])
    tile_numbers = np.repeat(np.arange(len(found)), [len(detections.labels) for _, detections in found])
    tiles = np.stack([tile.xyxy for tile, _ in found])
    margin = MARGIN * float((tiles[:, 2:] - tiles[:, :2]).max())
    cut = _cut_sides(everything.boxes_xyxy, tiles[tile_numbers], np.array((0, 0, width, height)), margin)
    is_cut: np.ndarray = np.any(cut, axis=1)
    links = _links(everything, tiles, tile_numbers, cut, margin)
    parts = set(np.flatnonzero(is_cut).tolist())
    parts -= {index for pair in links for index, other in (pair, pair[::-1]) if not is_cut[other]}
    groups = _groups(parts, [pair for pair in links if parts.issuperset(pair)])
    whole = np.flatnonzero(~is_cut).tolist()
    merged = _join(everything, [*([index] for index in whole), *groups], width, height)
    keep = ~_covered(merged, np.arange(len(merged.labels)) >= len(whole))
    return _suppress(select_detections(merged, keep), iou, max_detections)


def _in_image(detections: ImageDetections, tile: Tile, width: int, height: int) -> ImageDetections:
    """Move the detections of a tile to their place in the image."""
    masks, keypoints = detections.masks, detections.keypoints
    size = tile.right - tile.left, tile.bottom - tile.top
    return replace(
        detections,
        boxes_xyxy=detections.boxes_xyxy + np.tile((tile.left, tile.top), 2),
        masks=None if masks is None else tuple(move_mask(mask, size, (tile.left, tile.top), (width, height)) for mask in masks),
        keypoints=None if keypoints is None else keypoints + np.array((tile.left, tile.top, 0)),
    )


def _concatenate(lists: Sequence[ImageDetections]) -> ImageDetections:
    arrays: dict[str, Any] = {}
    for name in ("boxes_xyxy", "confidences", "labels", "keypoints", "embeddings"):
        values = [getattr(detections, name) for detections in lists]
        arrays[name] = None if values[0] is None else np.concatenate(values)
    has_masks = lists[0].masks is not None
    return ImageDetections(**arrays, masks=tuple(mask for found in lists for mask in found.masks or ()) if has_masks else None)


def _cut_sides(boxes_xyxy: np.ndarray, tiles_xyxy: np.ndarray, image_xyxy: np.ndarray, margin: float) -> np.ndarray:
    """Return (N, 4) bool: the sides that lie on a border of the detection's tile, but not on a border of the image."""
    return (np.abs(boxes_xyxy - tiles_xyxy) <= margin) & (tiles_xyxy != image_xyxy)


def _links(
    detections: ImageDetections, tiles: np.ndarray, tile_numbers: np.ndarray, cut: np.ndarray, margin: float
) -> list[tuple[int, int]]:
    """Return the pairs of detections that are the same object, one of them or both cut."""
    outwards = np.array((-margin, -margin, margin, margin))
    # A cut side says only that the object goes on: it is moved out of the pixels that both tiles see.
    reaching = np.where(cut, tiles[tile_numbers] + outwards, detections.boxes_xyxy)
    is_cut: np.ndarray = np.any(cut, axis=1)
    members = [np.flatnonzero(tile_numbers == number) for number in range(len(tiles))]
    links: list[tuple[int, int]] = []
    for a, b in itertools.combinations(range(len(tiles)), 2):
        low, high = np.maximum(tiles[a, :2], tiles[b, :2]) - margin, np.minimum(tiles[a, 2:], tiles[b, 2:]) + margin
        if (high <= low).any() or not len(members[a]) or not len(members[b]):
            continue
        seen = [np.clip(reaching[members[tile]], np.tile(low, 2), np.tile(high, 2)) for tile in (a, b)]
        same = boxes.pairwise_iou(*map(torch.from_numpy, seen)).numpy() > AGREEMENT
        same &= detections.labels[members[a], None] == detections.labels[members[b]]
        same &= is_cut[members[a], None] | is_cut[members[b]]
        links += [(int(members[a][i]), int(members[b][j])) for i, j in np.argwhere(same)]
    return links


def _groups(parts: set[int], links: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return the parts in groups that links connect."""
    leader = {part: part for part in parts}

    def find(part: int) -> int:
        while leader[part] != part:
            part = leader[part]
        return part

    for first, second in links:
        leader[find(first)] = find(second)
    groups: dict[int, list[int]] = {}
    for part in sorted(parts):
        groups.setdefault(find(part), []).append(part)
    return list(groups.values())


def _join(detections: ImageDetections, groups: Sequence[Sequence[int]], width: int, height: int) -> ImageDetections:
    """Return one detection for each group of parts: the enclosing box, the best confidence, all pixels of the masks."""
    best = np.array([max(group, key=lambda index: detections.confidences[index]) for group in groups], np.int64)
    joined = select_detections(detections, np.zeros(len(detections.labels), bool))
    arrays = {name: getattr(detections, name) for name in ("confidences", "labels", "embeddings")}
    kept: dict[str, Any] = {name: None if values is None else values[best] for name, values in arrays.items()}
    kept["boxes_xyxy"] = np.array([_enclosing(detections.boxes_xyxy[list(group)]) for group in groups]).reshape(-1, 4)
    if detections.masks is not None:
        masks = detections.masks
        kept["masks"] = tuple(union_of_masks([masks[index] for index in group], width, height) for group in groups)
    if detections.keypoints is not None and len(groups):
        kept["keypoints"] = np.stack([_best_keypoints(detections.keypoints[list(group)]) for group in groups])
    return replace(joined, **kept)


def _enclosing(boxes_xyxy: np.ndarray) -> np.ndarray:
    return np.concatenate((boxes_xyxy[:, :2].min(axis=0), boxes_xyxy[:, 2:].max(axis=0)))


def _best_keypoints(keypoints: np.ndarray) -> np.ndarray:
    """Return (J, 3) of the keypoints of parts, (parts, J, 3): each from the part that is surest of it."""
    return keypoints[keypoints[..., 2].argmax(axis=0), np.arange(keypoints.shape[1])]


def _covered(detections: ImageDetections, is_part: np.ndarray) -> np.ndarray:
    """Return (N,) bool: the parts that lie mostly in a larger detection of their class."""
    corners = detections.boxes_xyxy
    areas = (corners[:, 2:] - corners[:, :2]).prod(axis=1)
    covered = np.zeros(len(corners), bool)
    for index in np.flatnonzero(is_part):
        sides = np.minimum(corners[:, 2:], corners[index, 2:]) - np.maximum(corners[:, :2], corners[index, :2])
        inside = sides.clip(min=0).prod(axis=1) > COVERED * areas[index]
        covered[index] = (inside & (detections.labels == detections.labels[index]) & (areas > areas[index])).any()
    return covered


def _suppress(detections: ImageDetections, iou: float, max_detections: int) -> ImageDetections:
    """Return the detections best first, without those that overlap a better one of their class by more than `iou`."""
    values = (torch.from_numpy(values) for values in (detections.boxes_xyxy, detections.confidences, detections.labels))
    kept = boxes.suppress(*values, iou=iou, limit=max_detections).numpy()
    arrays = {name: getattr(detections, name) for name in ("boxes_xyxy", "confidences", "labels", "keypoints", "embeddings")}
    chosen: dict[str, Any] = {name: None if values is None else values[kept] for name, values in arrays.items()}
    masks = detections.masks
    return replace(detections, **chosen, masks=None if masks is None else tuple(masks[index] for index in kept))

"""Move what is known of tiles with their pixels: boxes, keypoints, instance maps, and what is said of the whole image.

Legend: N objects, J keypoints per object, S side of the square network input in pixels.
"""

from dataclasses import dataclass, replace

import numpy as np

from yolor_ray.data.augment.instance_map import renumber_instances, shown, warp_instances
from yolor_ray.data.augment.labels import SampleLabels, concatenate_labels
from yolor_ray.data.augment.tile import Tile
from yolor_ray.data.augment.visibility import labels_of_all, visible_share

MIN_SIDE_PX, MIN_AREA_SHARE, MAX_ASPECT = 2.0, 0.1, 20.0
"""Boxes that a transform leaves smaller, less visible or thinner than this are no longer learned."""


@dataclass(frozen=True)
class PlacedTile:
    """Hold a tile that lies on a canvas, which may cut it."""

    tile: Tile
    x: int
    """Of the tile's left edge, in pixels of the canvas."""
    y: int
    """Of the tile's upper edge."""
    left: int
    """First column of the canvas that shows the tile."""
    top: int
    """First row of the canvas that shows the tile."""
    right: int
    """Column after the last."""
    bottom: int
    """Row after the last."""

    def cut(self, pixels: np.ndarray) -> np.ndarray:
        """Return the part of an array over the tile's pixels that is on the canvas."""
        return pixels[self.top - self.y : self.bottom - self.y, self.left - self.x : self.right - self.x]


def place_tile(tile: Tile, x: int, y: int, width: int, height: int) -> PlacedTile:
    """Return a tile with its upper left corner at x, y of a canvas."""
    h, w = tile.image.shape[:2]
    return PlacedTile(tile, x, y, max(x, 0), max(y, 0), min(x + w, width), min(y + h, height))


def transform_labels(parts: list[PlacedTile], canvas_px: tuple[int, int], matrix: np.ndarray, side: int) -> SampleLabels:
    """Return what is known of the S window that shows a canvas of tiles through `matrix` (2, 3), from edges to edges."""
    known = [part.tile.known for part in parts]
    corners = [np.array((part.x, part.y, part.x, part.y), np.float32) for part in parts]
    boxes = np.concatenate([one.boxes_xyxy + corner for one, corner in zip(known, corners, strict=True)])
    painted = boxes.clip(0, np.tile(canvas_px, 2))
    clipped = _move_boxes(painted, matrix).clip(0, side)
    keep = _still_there(_move_boxes(boxes, matrix), clipped)
    keypoints, identities = concatenate_labels([_on_canvas(part) for part in parts]), concatenate_labels([one.identities for one in known])
    has_mask, instances = _move_instances(parts, matrix, side, keep)
    boxes_known, image_labels = _of_the_whole(parts, matrix, side)
    return SampleLabels(
        boxes_xyxy=clipped[keep],
        labels=np.concatenate([one.labels for one in known])[keep],
        boxes_known=boxes_known,
        keypoints=None if keypoints is None else _move_keypoints(keypoints[keep], canvas_px, matrix, side),
        identities=None if identities is None else identities[keep],
        has_mask=has_mask,
        instances=instances,
        image_labels=image_labels,
    )


def _move_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return the upright hulls of transformed boxes."""
    corners = boxes[:, (0, 1, 2, 1, 2, 3, 0, 3)].reshape(-1, 4, 2) @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate((corners.min(axis=1), corners.max(axis=1)), axis=1).astype(np.float32)


def _still_there(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    sides, full = after[:, 2:] - after[:, :2], before[:, 2:] - before[:, :2]
    share = sides.prod(axis=1) / np.maximum(full.prod(axis=1), 1e-9)
    aspect = sides.max(axis=1) / np.maximum(sides.min(axis=1), 1e-9)
    return (sides.min(axis=1) > MIN_SIDE_PX) & (share > MIN_AREA_SHARE) & (aspect < MAX_ASPECT)


def _on_canvas(part: PlacedTile) -> np.ndarray | None:
    keypoints = part.tile.known.keypoints
    return None if keypoints is None else keypoints + np.array((part.x, part.y, 0), np.float32)


def _move_keypoints(keypoints: np.ndarray, canvas_px: tuple[int, int], matrix: np.ndarray, side: int) -> np.ndarray:
    """Return transformed keypoints; those that no pixel shows any more, be it for the canvas or the window, become unlabelled."""
    before, visibility = keypoints[..., :2], keypoints[..., 2]
    after = before @ matrix[:, :2].T + matrix[:, 2]
    is_shown = ((before >= 0) & (before <= canvas_px) & (after >= 0) & (after <= side)).all(axis=-1)
    visibility = np.where(is_shown, visibility, np.minimum(visibility, 0))
    return np.concatenate((after, visibility[..., None]), axis=-1).astype(np.float32)


def _move_instances(
    parts: list[PlacedTile], matrix: np.ndarray, side: int, keep: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """Return which kept objects have a mask of at least one pixel, and the (S, S) map."""
    has_mask = concatenate_labels([part.tile.known.has_mask for part in parts])
    if has_mask is None:
        return None, None
    whole = np.zeros((side, side), np.int32)
    count = 0
    for part in parts:
        if part.tile.known.instances is not None:
            to_window = matrix.copy()
            to_window[:, 2] += matrix[:, :2] @ (part.left, part.top)
            cells = warp_instances(part.cut(part.tile.known.instances), to_window, side)
            np.copyto(whole, cells.astype(np.int32) + count, where=cells > 0)
        count += len(part.tile.known.labels)
    instances = renumber_instances(whole, keep)
    return has_mask[keep] & shown(instances, int(keep.sum())), instances


def _of_the_whole(parts: list[PlacedTile], matrix: np.ndarray, side: int) -> tuple[bool, np.ndarray | None]:
    """Return whether all boxes are known, and the image labels."""
    known = [part.tile.known for part in parts]
    labels = [one.image_labels for one in known if one.image_labels is not None]
    if not labels and all(one.boxes_known for one in known):
        return True, None
    shares = np.array([_share(part, matrix, side) for part in parts])
    boxes_known = all(one.boxes_known for one, share in zip(known, shares, strict=True) if share > 0)
    return boxes_known, labels_of_all(np.stack(labels), shares) if labels else None


def _share(part: PlacedTile, matrix: np.ndarray, side: int) -> float:
    """Return how much of a tile the S window shows."""
    height, width = part.tile.image.shape[:2]
    corners = np.array(((part.left, part.top), (part.right, part.top), (part.right, part.bottom), (part.left, part.bottom)))
    area = height * width * abs(float(np.linalg.det(matrix[:, :2])))
    return visible_share((corners @ matrix[:, :2].T + matrix[:, 2]).tolist(), area, side)


def flip_labels(known: SampleLabels, side: int, *, across: bool, down: bool, joints: np.ndarray) -> SampleLabels:
    """Return what is known of an S picture that was flipped left to right (`across`), top to bottom (`down`), or both.

    A mirror makes left ones of right keypoints, which `joints` (J,) tells; two mirrors turn the picture and leave them.
    """
    boxes, keypoints, instances = known.boxes_xyxy, known.keypoints, known.instances
    for axis, flips in enumerate((across, down)):
        if not flips:
            continue
        boxes = boxes.copy()
        boxes[:, (axis, axis + 2)] = side - boxes[:, (axis + 2, axis)]
        if keypoints is not None:
            keypoints = keypoints.copy()
            keypoints[..., axis] = side - keypoints[..., axis]
        if instances is not None:
            instances = np.flip(instances, 1 - axis)
    if keypoints is not None and across != down:
        keypoints = keypoints[:, joints]
    return replace(known, boxes_xyxy=boxes, keypoints=keypoints, instances=instances)

"""Transform annotations together with their pixels: boxes, keypoints, instance maps and image labels.

Legend: N objects, J keypoints per object, S side of the square network input in pixels.
"""

from dataclasses import dataclass, replace

import numpy as np

from yolor_ray.data.augment.instance_map import renumber_instances, visible_objects, warp_instances
from yolor_ray.data.augment.labels import SampleLabels, concatenate_labels, known_in_all
from yolor_ray.data.augment.tile import Tile
from yolor_ray.data.augment.visibility import combine_image_labels, visible_share

MIN_SIDE_PX, MIN_AREA_SHARE, MAX_ASPECT = 2.0, 0.1, 20.0
"""Boxes that a transform leaves smaller, less visible or thinner than these limits are dropped."""


@dataclass(frozen=True)
class PlacedTile:
    """A tile at its position on a canvas, which may cut the tile."""

    tile: Tile
    x: int
    """Left edge of the tile, in pixels of the canvas."""
    y: int
    """Upper edge of the tile, in pixels of the canvas."""
    left: int
    """First column of the canvas that shows the tile."""
    top: int
    """First row of the canvas that shows the tile."""
    right: int
    """Column of the canvas after the last that shows the tile."""
    bottom: int
    """Row of the canvas after the last that shows the tile."""

    def cut(self, pixels: np.ndarray) -> np.ndarray:
        """Cut an array over the tile's pixels to the part that lies on the canvas."""
        return pixels[self.top - self.y : self.bottom - self.y, self.left - self.x : self.right - self.x]


def place_tile(tile: Tile, x: int, y: int, width: int, height: int) -> PlacedTile:
    """Place a tile with its upper left corner at x, y of a canvas."""
    h, w = tile.image.shape[:2]
    return PlacedTile(tile, x, y, max(x, 0), max(y, 0), min(x + w, width), min(y + h, height))


def transform_labels(placed_tiles: list[PlacedTile], canvas_px: tuple[int, int], matrix: np.ndarray, side: int) -> SampleLabels:
    """Transform the annotations of all tiles on a canvas into the (S, S) window.

    Args:
        placed_tiles: the tiles on the canvas.
        canvas_px: width and height of the canvas.
        matrix: (2, 3) from pixels of the canvas to pixels of the window, both measured from pixel edges.
        side: S.
    """
    annotations = [placed.tile.annotations for placed in placed_tiles]
    offsets = [np.array((placed.x, placed.y, placed.x, placed.y), np.float32) for placed in placed_tiles]
    boxes = np.concatenate([tile.boxes_xyxy + offset for tile, offset in zip(annotations, offsets, strict=True)])
    clipped = _transform_boxes(boxes.clip(0, np.tile(canvas_px, 2)), matrix).clip(0, side)
    keep = _is_learnable(_transform_boxes(boxes, matrix), clipped)
    keypoints = concatenate_labels([_keypoints_on_canvas(placed) for placed in placed_tiles])
    identities = concatenate_labels([tile.identities for tile in annotations])
    has_mask, instances = _transform_instances(placed_tiles, matrix, side, keep)
    boxes_known, image_labels = _combine_tiles(placed_tiles, matrix, side)
    return SampleLabels(
        boxes_xyxy=clipped[keep],
        labels=np.concatenate([tile.labels for tile in annotations])[keep],
        boxes_known=boxes_known,
        classes_known=known_in_all([tile.classes_known for tile in annotations]),
        member=annotations[0].member,
        keypoints=None if keypoints is None else _transform_keypoints(keypoints[keep], canvas_px, matrix, side),
        identities=None if identities is None else identities[keep],
        has_mask=has_mask,
        instances=instances,
        image_labels=image_labels,
    )


def _transform_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return the upright hulls of transformed boxes."""
    corners = boxes[:, (0, 1, 2, 1, 2, 3, 0, 3)].reshape(-1, 4, 2) @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate((corners.min(axis=1), corners.max(axis=1)), axis=1).astype(np.float32)


def _is_learnable(boxes: np.ndarray, clipped: np.ndarray) -> np.ndarray:
    """Return (N,) bool: the clipped boxes that are large, visible and thick enough, against the boxes before clipping."""
    sides, full_sides = clipped[:, 2:] - clipped[:, :2], boxes[:, 2:] - boxes[:, :2]
    share = sides.prod(axis=1) / np.maximum(full_sides.prod(axis=1), 1e-9)
    aspect = sides.max(axis=1) / np.maximum(sides.min(axis=1), 1e-9)
    return (sides.min(axis=1) > MIN_SIDE_PX) & (share > MIN_AREA_SHARE) & (aspect < MAX_ASPECT)


def _keypoints_on_canvas(placed: PlacedTile) -> np.ndarray | None:
    keypoints = placed.tile.annotations.keypoints
    return None if keypoints is None else keypoints + np.array((placed.x, placed.y, 0), np.float32)


def _transform_keypoints(keypoints: np.ndarray, canvas_px: tuple[int, int], matrix: np.ndarray, side: int) -> np.ndarray:
    """Transform keypoints; those outside the canvas or outside the window become unlabelled."""
    before, visibility = keypoints[..., :2], keypoints[..., 2]
    after = before @ matrix[:, :2].T + matrix[:, 2]
    is_inside = ((before >= 0) & (before <= canvas_px) & (after >= 0) & (after <= side)).all(axis=-1)
    visibility = np.where(is_inside, visibility, np.minimum(visibility, 0))
    return np.concatenate((after, visibility[..., None]), axis=-1).astype(np.float32)


def _transform_instances(
    placed_tiles: list[PlacedTile], matrix: np.ndarray, side: int, keep: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """Return the mask flags and the (S, S) instance map of the kept objects; an object without a visible pixel has no mask."""
    has_mask = concatenate_labels([placed.tile.annotations.has_mask for placed in placed_tiles])
    if has_mask is None:
        return None, None
    combined = np.zeros((side, side), np.int32)
    count = 0
    for placed in placed_tiles:
        annotations = placed.tile.annotations
        if annotations.instances is not None:
            to_window = matrix.copy()
            to_window[:, 2] += matrix[:, :2] @ (placed.left, placed.top)
            warped = warp_instances(placed.cut(annotations.instances), to_window, side)
            np.copyto(combined, warped.astype(np.int32) + count, where=warped > 0)
        count += len(annotations.labels)
    instances = renumber_instances(combined, keep)
    return has_mask[keep] & visible_objects(instances, int(keep.sum())), instances


def _combine_tiles(placed_tiles: list[PlacedTile], matrix: np.ndarray, side: int) -> tuple[bool, np.ndarray | None]:
    """Return `boxes_known` and the image labels of the window."""
    annotations = [placed.tile.annotations for placed in placed_tiles]
    image_labels = [tile.image_labels for tile in annotations if tile.image_labels is not None]
    if not image_labels and all(tile.boxes_known for tile in annotations):
        return True, None
    shares = np.array([_visible_share(placed, matrix, side) for placed in placed_tiles])
    boxes_known = all(tile.boxes_known for tile, share in zip(annotations, shares, strict=True) if share > 0)
    return boxes_known, combine_image_labels(np.stack(image_labels), shares) if image_labels else None


def _visible_share(placed: PlacedTile, matrix: np.ndarray, side: int) -> float:
    """Return the share of a tile that the (S, S) window shows."""
    height, width = placed.tile.image.shape[:2]
    corners = np.array(((placed.left, placed.top), (placed.right, placed.top), (placed.right, placed.bottom), (placed.left, placed.bottom)))
    area = height * width * abs(float(np.linalg.det(matrix[:, :2])))
    return visible_share((corners @ matrix[:, :2].T + matrix[:, 2]).tolist(), area, side)


def flip_labels(annotations: SampleLabels, side: int, *, horizontal: bool, vertical: bool, keypoint_order: np.ndarray) -> SampleLabels:
    """Flip the annotations of an (S, S) image: left to right (`horizontal`), top to bottom (`vertical`), or both.

    One flip turns left keypoints into right ones, in `keypoint_order` (J,). Two flips rotate the image and keep the order.
    """
    boxes, keypoints, instances = annotations.boxes_xyxy, annotations.keypoints, annotations.instances
    for axis, flips in enumerate((horizontal, vertical)):
        if not flips:
            continue
        boxes = boxes.copy()
        boxes[:, (axis, axis + 2)] = side - boxes[:, (axis + 2, axis)]
        if keypoints is not None:
            keypoints = keypoints.copy()
            keypoints[..., axis] = side - keypoints[..., axis]
        if instances is not None:
            instances = np.flip(instances, 1 - axis)
    if keypoints is not None and horizontal != vertical:
        keypoints = keypoints[:, keypoint_order]
    return replace(annotations, boxes_xyxy=boxes, keypoints=keypoints, instances=instances)

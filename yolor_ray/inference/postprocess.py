"""Map detections from the square network input to the displayed image: boxes, masks as COCO run lengths, keypoints.

Legend: D detections, J keypoints, E embedding numbers, M image classes, C prototypes of h x w cells; a cell is 4 x 4 input pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from yolor_ray.data.images.letterbox import Letterbox
from yolor_ray.data.rle import encode_crop
from yolor_ray.inference.detect import Detections

CELL_PX = 4
"""Side of a prototype's cell, pixels of the network input."""


@dataclass(frozen=True)
class ImageDetections:
    """Detections of one image, best first, in pixels of the displayed image; outputs of tasks that the network lacks are None."""

    boxes_xyxy: np.ndarray
    """(D, 4) float64, clipped to the image."""
    confidences: np.ndarray
    """(D,) float64, 0 to 1."""
    labels: np.ndarray
    """(D,) int64, index into the classes."""
    masks: tuple[bytes, ...] | None = None
    """D compressed COCO run-length strings (`counts`; size = height, width of the image)."""
    keypoints: np.ndarray | None = None
    """(D, J, 3) float64: x, y, which may lie outside the image, and confidence 0 to 1; 0 for keypoints that the class does not have."""
    embeddings: np.ndarray | None = None
    """(D, E) float32 of length 1."""
    image_labels: np.ndarray | None = None
    """(M,) float64: probabilities."""


def to_image_detections(detections: Detections, letterbox: Letterbox, keypoint_flags: np.ndarray, *, masks: bool = True) -> ImageDetections:
    """Map detections to the displayed image.

    Args:
        detections: in pixels of the network's input.
        letterbox: position of the image in the network's input.
        keypoint_flags: (K, J) bool: the keypoints that each class has; the others get the confidence 0.
        masks: False makes no masks.
    """
    boxes_xyxy = letterbox.to_image(detections.boxes_xyxy.double().numpy())
    embeddings, image_labels = detections.embeddings, detections.image_labels
    return ImageDetections(
        boxes_xyxy=boxes_xyxy,
        confidences=detections.confidences.double().numpy(),
        labels=detections.labels.numpy(),
        masks=tuple(_masks(detections, boxes_xyxy, letterbox)) if masks and detections.coefficients is not None else None,
        keypoints=None if detections.keypoints is None else _keypoints(detections, letterbox, keypoint_flags),
        embeddings=None if embeddings is None else embeddings.float().numpy(),
        image_labels=None if image_labels is None else image_labels.double().numpy(),
    )


def select_detections(detections: ImageDetections, keep: np.ndarray) -> ImageDetections:
    """Return the detections that `keep` (D,) bool marks; labels of the whole image stay."""
    arrays = {name: getattr(detections, name) for name in ("boxes_xyxy", "confidences", "labels", "keypoints", "embeddings")}
    kept: dict[str, Any] = {name: None if values is None else values[keep] for name, values in arrays.items()}
    masks = detections.masks
    return replace(detections, **kept, masks=None if masks is None else tuple(masks[index] for index in np.flatnonzero(keep)))


def _input_transform(letterbox: Letterbox) -> tuple[np.ndarray, np.ndarray]:
    """Return factor and offset, x and y each, from pixels of the image to pixels of the input."""
    size = np.array((letterbox.width, letterbox.height))
    corners = letterbox.to_input(np.array((0, 0, letterbox.width, letterbox.height)))
    return (corners[2:] - corners[:2]) / size, corners[:2]


def _keypoints(detections: Detections, letterbox: Letterbox, flags: np.ndarray) -> np.ndarray:
    assert detections.keypoints is not None
    keypoints = detections.keypoints.double().numpy()
    factor, offset = _input_transform(letterbox)
    confidences = keypoints[..., 2] * flags[detections.labels.numpy()]
    return np.concatenate([(keypoints[..., :2] - offset) / factor, confidences[..., None]], axis=-1)


def _masks(detections: Detections, boxes_xyxy: np.ndarray, letterbox: Letterbox) -> Iterator[bytes]:
    """Yield the run lengths of each object's mask.

    A pixel is in the mask if its centre lies in the box and the logit there is above 0; logits are bilinear between cell centres.
    """
    assert detections.coefficients is not None and detections.prototypes is not None
    # Channels last: the logits of a box are then one product of contiguous numbers.
    prototypes = detections.prototypes.float().permute(1, 2, 0).contiguous().numpy()
    side = round(letterbox.scale * max(letterbox.width, letterbox.height))
    assert side % CELL_PX == 0 and prototypes.shape[:2] == (side // CELL_PX,) * 2, f"prototypes {prototypes.shape}, input {side} px"
    factor, offset = _input_transform(letterbox)
    # The pixel at x has its centre at x + 0.5.
    ranges = np.ceil(boxes_xyxy - 0.5).astype(int).tolist()
    for coefficients, (x1, y1, x2, y2) in zip(detections.coefficients.float().numpy(), ranges, strict=True):
        columns = _cell_positions(x1, x2, factor[0], offset[0], prototypes.shape[1])
        rows = _cell_positions(y1, y2, factor[1], offset[1], prototypes.shape[0])
        inside = _logits(prototypes, coefficients, rows, columns) > 0
        yield encode_crop(inside, x1, y1, letterbox.width, letterbox.height)


def _cell_positions(start: int, stop: int, factor: float, offset: float, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of the centres of pixels start to stop among cell centres along one axis.

    A position is the index of the cell before the pixel's centre, and the fraction of the distance to the next cell.
    """
    positions = ((np.arange(start, stop) + 0.5) * factor + offset) / CELL_PX - 0.5
    positions = np.clip(positions, 0, cells - 1)
    before = np.minimum(positions.astype(int), max(cells - 2, 0))
    return before, (positions - before).astype(np.float32)


def _logits(
    prototypes: np.ndarray, coefficients: np.ndarray, rows: tuple[np.ndarray, np.ndarray], columns: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Return one object's (width, height) logits, columns first as in COCO's runs, from prototypes (h, w, C)."""
    (row, row_fraction), (column, column_fraction) = rows, columns
    if len(row) == 0 or len(column) == 0:
        return np.zeros((len(column), len(row)), np.float32)
    # One axis after the other. The last cell of a one-cell grid has no neighbour.
    cells = prototypes[row[0] : row[-1] + 2, column[0] : column[-1] + 2] @ coefficients
    return _interpolate(_interpolate(cells.T, column - column[0], column_fraction).T, row - row[0], row_fraction).T


def _interpolate(values: np.ndarray, before: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    """Return values (N, ...) at the positions `before` + `fraction` along the first axis."""
    low = values[before]
    return low + (values[np.minimum(before + 1, len(values) - 1)] - low) * fraction[:, None]

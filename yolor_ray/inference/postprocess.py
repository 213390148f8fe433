"""Turn what a network found in its square input into what lies in the image: boxes, masks as run lengths, joints.

Legend: D detections, J keypoints, E embedding numbers, M image classes, C prototypes of h x w cells; a cell is 4 x 4 input pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pycocotools import mask as run_length

from yolor_ray.data.augment.instance_map import run_lengths
from yolor_ray.data.images.letterbox import Letterbox
from yolor_ray.inference.detect import Detections

CELL_PX = 4
"""Side of a prototype's cell, pixels of the network input."""


@dataclass(frozen=True)
class ImageDetections:
    """Hold what was found in one image, best first, in pixels of the displayed image; None where the network lacks the task."""

    boxes_xyxy: np.ndarray
    """(D, 4) float64, clipped to the image."""
    confidences: np.ndarray
    """(D,) float64, 0 to 1."""
    labels: np.ndarray
    """(D,) int64: index into the classes."""
    masks: tuple[bytes, ...] | None = None
    """D compressed COCO run-length strings (`counts`; size = height, width of the image)."""
    keypoints: np.ndarray | None = None
    """(D, J, 3) float64: x, y, which may lie outside the image, and confidence 0 to 1."""
    embeddings: np.ndarray | None = None
    """(D, E) float32 of length 1."""
    image_labels: np.ndarray | None = None
    """(M,) float64: probabilities."""


def to_image_detections(detections: Detections, place: Letterbox, *, masks: bool = True) -> ImageDetections:
    """Return what was found in an image that lies at `place` in the network's input; without `masks` none are made."""
    boxes_xyxy = place.to_image(detections.boxes_xyxy.double().numpy())
    embeddings, image_labels = detections.embeddings, detections.image_labels
    return ImageDetections(
        boxes_xyxy=boxes_xyxy,
        confidences=detections.confidences.double().numpy(),
        labels=detections.labels.numpy(),
        masks=tuple(_masks(detections, boxes_xyxy, place)) if masks and detections.coefficients is not None else None,
        keypoints=None if detections.keypoints is None else _keypoints(detections.keypoints.double().numpy(), place),
        embeddings=None if embeddings is None else embeddings.float().numpy(),
        image_labels=None if image_labels is None else image_labels.double().numpy(),
    )


def select_detections(located: ImageDetections, which: np.ndarray) -> ImageDetections:
    """Return the objects of an image that `which` (D,) bool marks; what is said of the image as a whole stays."""
    arrays = {name: getattr(located, name) for name in ("boxes_xyxy", "confidences", "labels", "keypoints", "embeddings")}
    kept: dict[str, Any] = {name: None if values is None else values[which] for name, values in arrays.items()}
    masks = located.masks
    return replace(located, **kept, masks=None if masks is None else tuple(masks[index] for index in np.flatnonzero(which)))


def mask_pixels(mask: bytes, height: int, width: int) -> np.ndarray:
    """Return (height, width) bool from compressed COCO run lengths."""
    runs, _ = run_lengths([mask])
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def _affine(place: Letterbox) -> tuple[np.ndarray, np.ndarray]:
    """Return factor and offset, x and y each, that take pixels of the image to pixels of the input."""
    size = np.array((place.width, place.height))
    corners = place.to_input(np.array((0, 0, place.width, place.height)))
    return (corners[2:] - corners[:2]) / size, corners[:2]


def _keypoints(keypoints: np.ndarray, place: Letterbox) -> np.ndarray:
    factor, offset = _affine(place)
    return np.concatenate([(keypoints[..., :2] - offset) / factor, keypoints[..., 2:]], axis=-1)


def _masks(detections: Detections, boxes_xyxy: np.ndarray, place: Letterbox) -> Iterator[bytes]:
    """Yield each object's run lengths: pixels whose centres lie in the box and where the logit, between cells bilinear, is above 0."""
    assert detections.coefficients is not None and detections.prototypes is not None
    # Cells first: the logits of a box are then one product of what lies together.
    prototypes = detections.prototypes.float().permute(1, 2, 0).contiguous().numpy()
    side = round(place.scale * max(place.width, place.height))
    assert side % CELL_PX == 0 and prototypes.shape[:2] == (side // CELL_PX,) * 2, f"prototypes {prototypes.shape}, input {side} px"
    factor, offset = _affine(place)
    # The pixel at x has its centre at x + 0.5.
    ranges = np.ceil(boxes_xyxy - 0.5).astype(int).tolist()
    for coefficients, (x1, y1, x2, y2) in zip(detections.coefficients.float().numpy(), ranges, strict=True):
        columns = _cells(x1, x2, factor[0], offset[0], prototypes.shape[1])
        rows = _cells(y1, y2, factor[1], offset[1], prototypes.shape[0])
        inside = _logits(prototypes, coefficients, rows, columns) > 0
        yield _run_lengths(inside, x1, y1, place.height, place.width)


def _cells(start: int, stop: int, factor: float, offset: float, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Return between which two cells, the first of them, and how far from it, the centres of pixels start to stop lie along one axis."""
    places = ((np.arange(start, stop) + 0.5) * factor + offset) / CELL_PX - 0.5
    places = np.clip(places, 0, cells - 1)
    first = np.minimum(places.astype(int), max(cells - 2, 0))
    return first, (places - first).astype(np.float32)


def _logits(
    prototypes: np.ndarray, coefficients: np.ndarray, rows: tuple[np.ndarray, np.ndarray], columns: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Return one object's (width, height) logits, columns first as COCO's runs go, from prototypes (h, w, C)."""
    (row, row_part), (column, column_part) = rows, columns
    if len(row) == 0 or len(column) == 0:
        return np.zeros((len(column), len(row)), np.float32)
    # Along one axis after the other; the end of a one-cell grid has no neighbour.
    part = prototypes[row[0] : row[-1] + 2, column[0] : column[-1] + 2] @ coefficients
    return _between(_between(part.T, column - column[0], column_part).T, row - row[0], row_part).T


def _between(values: np.ndarray, first: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Return values (N, ...) at `first` + `part` along the first axis."""
    low = values[first]
    return low + (values[np.minimum(first + 1, len(values) - 1)] - low) * part[:, None]


def _run_lengths(inside: np.ndarray, left: int, top: int, height: int, width: int) -> bytes:
    """Return the compressed run lengths of an image of which only a part (columns, rows), beginning at left and top, can be inside."""
    columns, rows = inside.shape
    framed = np.zeros((columns, rows + 2), np.int8)
    framed[:, 1:-1] = inside
    column, row = np.nonzero(np.diff(framed, axis=1))
    # Starts and ends of runs take turns, for each column ends what it began.
    edges = (column + left) * height + row + top
    # A run that ends at the bottom goes on where the next column begins at the top.
    joined = edges[1:-1:2] == edges[2::2]
    keep = np.ones(len(edges), bool)
    keep[1:-1:2] &= ~joined
    keep[2::2] &= ~joined
    counts = np.diff(edges[keep], prepend=0, append=height * width)
    counts = counts[:-1] if len(counts) > 1 and counts[-1] == 0 else counts
    return run_length.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"]

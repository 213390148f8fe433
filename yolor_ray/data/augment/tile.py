"""Decode records into tiles: images of the training size with their annotations, cached while they fit.

Legend: N objects, J keypoints per object, M labels of the whole image, I individuals.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

import cv2
import numpy as np

from yolor_ray.data.augment.instance_map import instance_map
from yolor_ray.data.augment.label_spec import BOXES_ONLY, LabelSpec
from yolor_ray.data.augment.labels import SampleLabels
from yolor_ray.data.images.decode import decode
from yolor_ray.data.rle import encode_runs
from yolor_ray.data.shards.records import Record
from yolor_ray.errors import ImageError


@dataclass(frozen=True)
class Tile:
    """One decoded image, whose longer side is that of the network input, with its annotations."""

    image: np.ndarray
    """(h, w, 3) uint8 RGB."""
    annotations: SampleLabels
    """In pixels of the tile."""

    @property
    def nbytes(self) -> int:
        """Memory of the tile's pixels and instance map, in bytes."""
        return self.image.nbytes + (0 if self.annotations.instances is None else self.annotations.instances.nbytes)


def make_tile(record: Record, image_px: int, label_spec: LabelSpec = BOXES_ONLY, member: int = 0) -> Tile:
    """Decode a record so that its longer side is `image_px`; crowd regions are left out.

    Args:
        record: the image with its annotations.
        image_px: side of the network input.
        label_spec: the annotations to carry besides boxes.
        member: index of the record's dataset in a union.
    """
    size = tile_size(record, image_px)
    try:
        image = decode(record.image, fit_px=image_px)
    except ImageError as error:
        raise ImageError(error.code, f"{record.name}: {error}") from error
    if (image.shape[1], image.shape[0]) != size:
        image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    return Tile(image, tile_annotations(record, image_px, label_spec, member))


def tile_annotations(record: Record, image_px: int, label_spec: LabelSpec = BOXES_ONLY, member: int = 0) -> SampleLabels:
    """Return the annotations of a record's tile, without its pixels; see `make_tile`."""
    scale = image_px / max(record.width, record.height)
    single = ~record.objects.crowd
    has_mask, instances = _instances(record, single, tile_size(record, image_px)) if label_spec.masks else (None, None)
    return SampleLabels(
        boxes_xyxy=record.objects.boxes_xyxy[single] * np.float32(scale),
        labels=record.objects.labels[single],
        boxes_known="detect" in record.tasks,
        classes_known=None if label_spec.object_classes is None else label_spec.object_classes[member],
        member=member,
        keypoints=_keypoints(record, len(label_spec.keypoint_names), scale)[single] if label_spec.keypoint_names else None,
        identities=None if label_spec.identities is None else _identities(record, label_spec.identities)[single],
        has_mask=has_mask,
        instances=instances,
        image_labels=None if label_spec.image_classes is None else _image_labels(record, label_spec.image_classes[member]),
    )


def tile_size(record: Record, image_px: int) -> tuple[int, int]:
    """Return width and height of a record's tile."""
    scale = image_px / max(record.width, record.height)
    return max(round(record.width * scale), 1), max(round(record.height * scale), 1)


def _instances(record: Record, single: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the mask flags of single objects, and the instance map of their masks; unknown masks are not in the map."""
    count = int(single.sum())
    if "segment" not in record.tasks or record.objects.masks is None or not count:
        return np.zeros(count, np.bool_), np.zeros(size[::-1], np.uint16)
    masks = [mask for mask, is_single in zip(record.objects.masks, single.tolist(), strict=True) if is_single]
    empty = encode_runs([record.width * record.height], record.width, record.height)
    instances = instance_map([mask or empty for mask in masks], record.width, record.height, size)
    return np.array([mask is not None for mask in masks], np.bool_), instances


def _keypoints(record: Record, keypoint_count: int, scale: float) -> np.ndarray:
    """Return (N, J, 3) keypoints in pixels of the tile, visibility -1 where they were not annotated."""
    if "pose" not in record.tasks or record.objects.keypoints is None:
        return np.tile(np.array((0, 0, -1), np.float32), (len(record.objects.labels), keypoint_count, 1))
    # A record without objects may come from a table that does not contain J: the record's array is then (0, 0, 3).
    return record.objects.keypoints.reshape(-1, keypoint_count, 3) * np.array((scale, scale, 1), np.float32)


def _identities(record: Record, individuals: np.ndarray) -> np.ndarray:
    """Return (N,) int64 indices into `individuals` (I,), which is sorted; -1 for any other individual."""
    if record.objects.identities is None or not len(individuals):
        return np.full(len(record.objects.labels), -1, np.int64)
    indices = np.searchsorted(individuals, record.objects.identities).clip(max=len(individuals) - 1)
    return np.where(individuals[indices] == record.objects.identities, indices, -1)


def _image_labels(record: Record, annotated: np.ndarray) -> np.ndarray:
    """Return (M,) float32 image labels; `annotated` (M,) bool marks the image classes of the record's dataset."""
    labels = np.where(annotated & ("classify" in record.tasks), np.float32(0), np.float32(np.nan))
    if "classify" in record.tasks:
        labels[record.image_labels] = 1
    return labels


class TileCache:
    """Cache of the most recently used tiles within a memory budget; safe to share between threads."""

    def __init__(self, budget_bytes: int) -> None:
        self._tiles: OrderedDict[int, Tile] = OrderedDict()
        self._free_bytes = budget_bytes
        self._lock = Lock()

    def get(self, record: int, make: Callable[[], Tile]) -> Tile:
        """Return the tile of a record number; call `make` unless the tile is cached."""
        with self._lock:
            if record in self._tiles:
                self._tiles.move_to_end(record)
                return self._tiles[record]
        tile = make()
        with self._lock:
            if record not in self._tiles:
                self._tiles[record] = tile
                self._free_bytes -= tile.nbytes
            while self._free_bytes < 0 and len(self._tiles) > 1:
                self._free_bytes += self._tiles.popitem(last=False)[1].nbytes
        return tile

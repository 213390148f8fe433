"""Measure the images and objects of a dataset, row group by row group; measurements of several row groups are joined.

Each image is decoded once, at a reduced size where its format allows it.
Legend: I images, N objects, M image labels, P pairs of objects.
"""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from yolor_ray.data.coco_rules import exceeded_limits
from yolor_ray.data.images.decode import decode
from yolor_ray.data.shards.dataset import Dataset, RowGroup, read_row_group, to_records
from yolor_ray.data.shards.records import Objects, Record
from yolor_ray.errors import ImageError
from yolor_ray.pack.health.similar import THUMBNAIL_PX, Fingerprints, hash_thumbnail, make_thumbnail

DECODE_PX = 64
"""Long side to which a JPEG may be reduced while it is decoded."""
SAME_OBJECT_IOU = 0.9
"""Overlap above which two boxes of one image are taken for the same object."""
IMAGES_PER_TASK = 2048
BYTES_PER_TASK = 256 * 2**20
"""Images, or encoded bytes where images are large, that one task measures."""
PAIR_BLOCK = 256
"""Objects that are compared at once with all objects of their image."""


@dataclass(frozen=True)
class Scan:
    """Measurements of consecutive images."""

    names: tuple[str, ...]
    """I record names."""
    digests: tuple[bytes, ...]
    """I SHA-256 digests of the encoded images."""
    tasks: tuple[tuple[str, ...], ...]
    """Tasks that each of the I images is annotated for."""
    exceeded: tuple[tuple[str, ...], ...]
    """Tasks for which each of the I images has more objects of a class than COCO compares detections."""
    sizes_px: np.ndarray
    """(I, 2) int64: width and height of the displayed image."""
    hashes: np.ndarray
    """(I,) uint64, see `Fingerprints`."""
    thumbnails: np.ndarray
    """(I, 32, 32) uint8, see `Fingerprints`."""
    object_counts: np.ndarray
    """(I,) int64: objects per image, crowd regions included."""
    label_counts: np.ndarray
    """(I,) int64: image labels per image."""
    boxes_xyxy: np.ndarray
    """(N, 4) float32, pixels of the displayed image."""
    labels: np.ndarray
    """(N,) int64."""
    crowd: np.ndarray
    """(N,) bool."""
    identities: np.ndarray
    """(N,) int64; -1 unknown."""
    image_labels: np.ndarray
    """(M,) int64."""
    same_objects: np.ndarray
    """(P, 2) int64: numbers of two objects, among the N, that are boxes of the same object."""

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.names)

    @property
    def image_of_object(self) -> np.ndarray:
        """(N,) int64: number of the object's image."""
        return np.repeat(np.arange(self.images), self.object_counts)

    @property
    def image_of_label(self) -> np.ndarray:
        """(M,) int64: number of the label's image."""
        return np.repeat(np.arange(self.images), self.label_counts)

    @property
    def fingerprints(self) -> Fingerprints:
        """Descriptions by which images are compared."""
        return Fingerprints(self.hashes, self.thumbnails, self.sizes_px[:, 0] / np.maximum(self.sizes_px[:, 1], 1))

    def scaled_sides(self, image_px: int) -> np.ndarray:
        """Return width and height of each box, (N, 2) float64 pixels, after its image is letterboxed to `image_px`."""
        scales = image_px / self.sizes_px.max(axis=1, initial=1)
        sides = self.boxes_xyxy[:, 2:].astype(np.float64) - self.boxes_xyxy[:, :2]
        return sides * scales[self.image_of_object, None]


def scan_row_groups(dataset: Dataset, groups: Sequence[RowGroup]) -> Scan:
    """Measure the records of row groups.

    Raises:
        ImageError: an image cannot be decoded; the message names the image.
    """
    return join_scans([_measure(dataset.url, to_records(read_row_group(dataset, group))) for group in groups])


def shares(dataset: Dataset) -> list[tuple[RowGroup, ...]]:
    """Divide the row groups of a dataset among tasks of about equal work, in the order of the records; a small dataset is one task."""
    bytes_per_image = [shard.bytes / shard.rows for shard in dataset.shards for _ in shard.row_groups]
    groups = dataset.row_groups
    work = [
        max(group.rows / IMAGES_PER_TASK, group.rows * size / BYTES_PER_TASK) for group, size in zip(groups, bytes_per_image, strict=True)
    ]
    tasks = [int(end - start / 2) for start, end in zip(work, itertools.accumulate(work), strict=True)]
    numbered = zip(tasks, groups, strict=True)
    return [tuple(group for _, group in share) for _, share in itertools.groupby(numbered, key=lambda pair: pair[0])]


def join_scans(scans: Sequence[Scan]) -> Scan:
    """Join the measurements of consecutive row groups."""
    starts = np.cumsum([0, *(len(scan.labels) for scan in scans)])
    columns: dict[str, Any] = {}
    for column in fields(Scan):
        parts = [getattr(scan, column.name) for scan in scans]
        columns[column.name] = tuple(itertools.chain(*parts)) if isinstance(parts[0], tuple) else np.concatenate(parts)
    # Objects are numbered from the first of all images.
    pairs = [scan.same_objects + start for scan, start in zip(scans, starts[:-1], strict=True)]
    return Scan(**columns | {"same_objects": np.concatenate(pairs)})


def _measure(url: str, records: Sequence[Record]) -> Scan:
    thumbnails = [_thumbnail(url, record) for record in records]
    objects = [record.objects for record in records]
    counts = np.array([len(item.labels) for item in objects], np.int64)
    pairs = [_same_objects(item) + start for item, start in zip(objects, np.cumsum(counts) - counts, strict=True)]
    unknown = [np.full(count, -1) for count in counts]
    known = [unknown[index] if item.identities is None else item.identities for index, item in enumerate(objects)]
    return Scan(
        names=tuple(record.name for record in records),
        digests=tuple(hashlib.sha256(record.image).digest() for record in records),
        tasks=tuple(record.tasks for record in records),
        exceeded=tuple(tuple(exceeded_limits(record.objects, record.tasks)) for record in records),
        sizes_px=np.array([(record.width, record.height) for record in records], np.int64).reshape(-1, 2),
        hashes=np.array([hash_thumbnail(thumbnail) for thumbnail in thumbnails], np.uint64),
        thumbnails=np.array(thumbnails, np.uint8).reshape(-1, THUMBNAIL_PX, THUMBNAIL_PX),
        object_counts=counts,
        label_counts=np.array([len(record.image_labels) for record in records], np.int64),
        boxes_xyxy=np.concatenate([item.boxes_xyxy for item in objects]).reshape(-1, 4),
        labels=np.concatenate([item.labels for item in objects]),
        crowd=np.concatenate([item.crowd for item in objects]),
        identities=np.concatenate(known),
        image_labels=np.concatenate([record.image_labels for record in records]),
        same_objects=np.concatenate(pairs),
    )


def _thumbnail(url: str, record: Record) -> np.ndarray:
    try:
        return make_thumbnail(decode(record.image, fit_px=DECODE_PX))
    except ImageError as error:
        raise ImageError(error.code, f"{url}, image {record.name!r}: {error}") from error


def _same_objects(objects: Objects) -> np.ndarray:
    """Return the pairs of objects, (P, 2) int64, whose boxes overlap so much that both are boxes of one object."""
    single = np.flatnonzero(~objects.crowd)
    boxes = objects.boxes_xyxy[single].astype(np.float64)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    pairs = [np.zeros((0, 2), np.int64)]
    # In blocks, as an image may have thousands of objects.
    for start in range(0, len(single), PAIR_BLOCK):
        block = slice(start, start + PAIR_BLOCK)
        inner = np.minimum(boxes[block, None, 2:], boxes[None, :, 2:]) - np.maximum(boxes[block, None, :2], boxes[None, :, :2])
        overlaps = np.maximum(inner, 0).prod(axis=2)
        same = overlaps > SAME_OBJECT_IOU * (areas[block, None] + areas - overlaps)
        first, second = np.nonzero(np.triu(same, k=start + 1))
        pairs.append(np.stack((single[first + start], single[second]), axis=1))
    return np.concatenate(pairs)

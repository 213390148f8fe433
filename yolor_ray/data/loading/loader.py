"""Load a worker's steps as batches: decode and augment images in threads, ahead of the consumer, into reused buffers.

Encoded bytes come in whole row groups from a `Source`. Decoded tiles are cached while they fit, so that mosaics cost no second
decode. A sample depends on seed, record and the epoch of its dataset alone, not on the thread that makes it.
Legend: B images, S side of the square network input in pixels, N boxes, K classes, J keypoints per object, M labels of the whole image.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from yolor_ray.config import AugmentConfig
from yolor_ray.data.augment.keypoint_flip import flipped_keypoint_order
from yolor_ray.data.augment.label_spec import BOXES_ONLY, LabelSpec
from yolor_ray.data.augment.labels import SampleLabels, concatenate_labels
from yolor_ray.data.augment.tile import Tile, TileCache, make_tile
from yolor_ray.data.augment.transforms import training_sample
from yolor_ray.data.loading.epoch_plan import Step, Steps, windows_in_use
from yolor_ray.data.loading.epoch_windows import Window
from yolor_ray.data.shards.dataset import RowGroup, to_records
from yolor_ray.data.shards.records import Record

TILE_CACHE_BYTES = 512 * 2**20
"""Memory budget of each worker's decoded tiles."""
BATCHES_AHEAD = 2
"""Batches in preparation while the consumer holds one."""

Records = dict[int, tuple[Record, int]]
"""Records by number, each with the index of its dataset in a union."""
Source = Callable[[Iterable[RowGroup]], Iterator[pa.Table]]
"""Yields the tables of row groups, in the order of the groups passed in, which are taken as they are needed."""


@dataclass(frozen=True)
class Batch:
    """One batch of training images with their annotations; None for annotations outside the label spec.

    `images` is overwritten when the consumer takes the second batch after this one.
    """

    images: np.ndarray
    """(B, S, S, 3) uint8 RGB."""
    positions: np.ndarray
    """(N,) int64: index in the batch of each box's image."""
    labels: np.ndarray
    """(N,) int64: classes of the objects."""
    boxes_xyxy: np.ndarray
    """(N, 4) float32, pixels of the network input."""
    boxes_known: np.ndarray
    """(B,) bool: True if every object of the image has a box here; False if there may be other objects."""
    classes_known: np.ndarray | None = None
    """(B, K) bool: classes whose objects are annotated in the image; None for all classes."""
    members: np.ndarray | None = None
    """(B,) int64: index of each image's dataset in a union; None if all images are of one dataset."""
    keypoints: np.ndarray | None = None
    """(N, J, 3) float32: x, y in pixels of the network input; visibility -1 not annotated, 0 unlabelled, 1 hidden, 2 visible."""
    identities: np.ndarray | None = None
    """(N,) int64: index of the individual in `LabelSpec.identities`, -1 unknown."""
    has_mask: np.ndarray | None = None
    """(N,) bool: True if `instances` shows the object; False if the object's pixels are unknown."""
    instances: np.ndarray | None = None
    """(B, S, S) int32 instance maps: 1 + index of the object in `boxes_xyxy`, 0 none."""
    image_labels: np.ndarray | None = None
    """(B, M) float32: 1 yes, 0 no, NaN unknown."""


def records_per_window(image_px: int, label_spec: LabelSpec = BOXES_ONLY) -> int:
    """Return the number of records to shuffle together: as many as fit the tile cache, 64 to 1024."""
    bytes_per_px = 5 if label_spec.masks else 3
    return int(np.clip(TILE_CACHE_BYTES // (bytes_per_px * image_px**2), 64, 1024))


@dataclass(frozen=True)
class _PendingBatch:
    images: np.ndarray
    samples: list[Future[SampleLabels]]

    def batch(self) -> Batch:
        """Wait for the samples and concatenate their annotations."""
        return make_batch(self.images, [sample.result() for sample in self.samples])


def make_batch(images: np.ndarray, annotations: Sequence[SampleLabels]) -> Batch:
    """Return the batch of images (B, S, S, 3) and the annotations of each."""
    counts = [len(sample.labels) for sample in annotations]
    members = np.array([sample.member for sample in annotations], np.int64)
    return Batch(
        images,
        positions=np.repeat(np.arange(len(counts)), counts),
        labels=np.concatenate([sample.labels for sample in annotations]),
        boxes_xyxy=np.concatenate([sample.boxes_xyxy for sample in annotations]).astype(np.float32),
        boxes_known=np.array([sample.boxes_known for sample in annotations], np.bool_),
        classes_known=_stack([sample.classes_known for sample in annotations]),
        members=members if len(np.unique(members)) > 1 else None,
        keypoints=concatenate_labels([sample.keypoints for sample in annotations]),
        identities=concatenate_labels([sample.identities for sample in annotations]),
        has_mask=concatenate_labels([sample.has_mask for sample in annotations]),
        instances=_batch_instances([sample.instances for sample in annotations], counts),
        image_labels=_stack([sample.image_labels for sample in annotations]),
    )


def _stack(arrays: list[np.ndarray | None]) -> np.ndarray | None:
    return concatenate_labels([None if array is None else array[None] for array in arrays])


def _batch_instances(maps: list[np.ndarray | None], counts: list[int]) -> np.ndarray | None:
    """Renumber the samples' instance maps by the objects' indices in the batch."""
    stacked = _stack(maps)
    if stacked is None:
        return None
    earlier = np.cumsum([0, *counts[:-1]], dtype=np.int32)
    return np.where(stacked > 0, stacked + earlier[:, None, None], np.int32(0))


class Loader:
    """Maker of training batches for one worker; keep it over epochs, for its tile cache and threads."""

    def __init__(
        self,
        source: Source,
        *,
        image_px: int,
        augment: AugmentConfig,
        seed: int,
        decode_threads: int,
        label_spec: LabelSpec = BOXES_ONLY,
    ) -> None:
        self._source, self._image_px, self._augment, self._seed, self._label_spec = source, image_px, augment, seed, label_spec
        self._keypoint_order = flipped_keypoint_order(label_spec.keypoint_names)
        self._tiles = TileCache(TILE_CACHE_BYTES)
        self._sample_threads = ThreadPoolExecutor(decode_threads, thread_name_prefix="yolor-augment")
        self._read_thread = ThreadPoolExecutor(1, thread_name_prefix="yolor-read")

    def close(self) -> None:
        """End the threads."""
        self._sample_threads.shutdown(cancel_futures=True)
        self._read_thread.shutdown(cancel_futures=True)

    def epoch(self, windows: Sequence[Window], steps: Steps, *, mosaic_closed: bool = False) -> Iterator[Batch]:
        """Yield the batches of `steps` in order; without mosaic and mixup if `mosaic_closed`."""
        augment = replace(self._augment, mosaic=0.0, mixup=0.0) if mosaic_closed else self._augment
        windows_of_step = self._read_ahead(windows, steps)
        buffers = [np.empty((steps.largest, self._image_px, self._image_px, 3), np.uint8) for _ in range(BATCHES_AHEAD + 2)]
        pending: deque[_PendingBatch] = deque()
        for number, step in enumerate(steps):
            loaded = windows_of_step(step)
            images = buffers[number % len(buffers)][: len(step.records)]
            samples = [
                self._sample_threads.submit(self._sample, int(record), windows[w], loaded[w], augment, image)
                for record, w, image in zip(step.records, step.windows, images, strict=True)
            ]
            pending.append(_PendingBatch(images, samples))
            if len(pending) > BATCHES_AHEAD:
                yield pending.popleft().batch()
        while pending:
            yield pending.popleft().batch()

    def _read_ahead(self, windows: Sequence[Window], steps: Steps) -> Callable[[Step], dict[int, Future[Records]]]:
        """Return a function from a step to its windows; each call also starts the next read and drops earlier windows."""
        needed = windows_in_use(steps)
        tables = self._source(group for w in windows_in_use(steps) for group in windows[w].groups)
        loaded: dict[int, Future[Records]] = {}

        def windows_of_step(step: Step) -> dict[int, Future[Records]]:
            of_step = set(step.windows.tolist())
            # A worker takes the windows of a dataset in their order, but for a record that it repeats.
            newest = {windows[w].member: w for w in sorted(of_step)} if step.weight > 0 else {}
            for w in [w for w in loaded if w not in of_step and w < newest.get(windows[w].member, 0)]:
                del loaded[w]
            while not of_step < loaded.keys() and (following := next(needed, None)) is not None:
                loaded[following] = self._read_thread.submit(_read_window, tables, windows[following])
            return loaded

        return windows_of_step

    def _sample(self, record: int, window: Window, read: Future[Records], augment: AugmentConfig, out: np.ndarray) -> SampleLabels:
        records = read.result()

        def tile_of(number: int) -> Tile:
            content, member = records[number]
            return self._tiles.get(number, lambda: make_tile(content, self._image_px, self._label_spec, member))

        rng = np.random.default_rng((self._seed, window.epoch, record))
        return training_sample(record, window.order, tile_of, rng, augment, out, self._keypoint_order)


def _read_window(tables: Iterator[pa.Table], window: Window) -> Records:
    """Take the window's row groups from the source and number their records."""
    numbered: Records = {}
    for group in window.groups:
        numbered.update(enumerate(((record, group.member) for record in to_records(next(tables))), start=group.first_record))
    return numbered

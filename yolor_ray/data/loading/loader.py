"""Turn a worker's steps into batches: decode and vary images in threads, ahead of the consumer, into reused buffers.

Encoded bytes come in whole row groups from a `Source`; decoded tiles are kept while they fit, so that mosaics cost no
second decode. A sample depends on seed, epoch and record alone, whatever thread makes it.
Legend: B images, S side of the square network input in pixels, N boxes, J keypoints per object, M labels of the whole image.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
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
from yolor_ray.data.loading.epoch_plan import Step, Window
from yolor_ray.data.shards.dataset import RowGroup, records
from yolor_ray.data.shards.records import Record

TILE_CACHE_BYTES = 512 * 2**20
"""Decoded tiles that each worker keeps."""
BATCHES_AHEAD = 2

Records = dict[int, tuple[Record, int]]
"""Records by number, each with the number of its data set in a union."""
Source = Callable[[Sequence[RowGroup]], Iterator[pa.Table]]
"""Yields the tables of row groups, in the order asked for."""


@dataclass(frozen=True)
class Batch:
    """Hold one batch of training images; `images` is overwritten when the next batch but one is asked for.

    What is not wanted is None.
    """

    images: np.ndarray
    """(B, S, S, 3) uint8 RGB."""
    positions: np.ndarray
    """(N,) int64: which image of the batch each box is in."""
    labels: np.ndarray
    """(N,) int64."""
    boxes_xyxy: np.ndarray
    """(N, 4) float32, pixels of the network input."""
    boxes_known: np.ndarray
    """(B,) bool: all objects of the image have a box here; otherwise there may be others."""
    keypoints: np.ndarray | None = None
    """(N, J, 3) float32: x, y in pixels of the network input, visibility -1 joint unknown, 0 unlabelled, 1 hidden, 2 visible."""
    identities: np.ndarray | None = None
    """(N,) int64: place of the individual in `Wanted.identities`, -1 unknown."""
    has_mask: np.ndarray | None = None
    """(N,) bool: the object's pixels are in `instances`; otherwise they are unknown."""
    instances: np.ndarray | None = None
    """(B, S, S) int32: 1 + position of the object in `boxes_xyxy`, 0 nothing."""
    image_labels: np.ndarray | None = None
    """(B, M) float32: 1 yes, 0 no, NaN unknown."""


def records_per_window(image_px: int, wanted: LabelSpec = BOXES_ONLY) -> int:
    """Return how many records are shuffled together: as many as fit the tile cache, 64 to 1024."""
    bytes_per_px = 5 if wanted.masks else 3
    return int(np.clip(TILE_CACHE_BYTES // (bytes_per_px * image_px**2), 64, 1024))


@dataclass(frozen=True)
class _Pending:
    images: np.ndarray
    samples: list[Future[SampleLabels]]

    def batch(self) -> Batch:
        """Wait for the samples and gather what is known of them."""
        known = [sample.result() for sample in self.samples]
        counts = [len(one.labels) for one in known]
        return Batch(
            self.images,
            positions=np.repeat(np.arange(len(counts)), counts),
            labels=np.concatenate([one.labels for one in known]),
            boxes_xyxy=np.concatenate([one.boxes_xyxy for one in known]).astype(np.float32),
            boxes_known=np.array([one.boxes_known for one in known], np.bool_),
            keypoints=concatenate_labels([one.keypoints for one in known]),
            identities=concatenate_labels([one.identities for one in known]),
            has_mask=concatenate_labels([one.has_mask for one in known]),
            instances=_numbered_through([one.instances for one in known], counts),
            image_labels=concatenate_labels([None if one.image_labels is None else one.image_labels[None] for one in known]),
        )


def _numbered_through(maps: list[np.ndarray | None], counts: list[int]) -> np.ndarray | None:
    """Return the samples' instance maps with the numbers that their objects have in the batch."""
    stacked = concatenate_labels([None if one is None else one[None] for one in maps])
    if stacked is None:
        return None
    earlier = np.cumsum([0, *counts[:-1]], dtype=np.int32)
    return np.where(stacked > 0, stacked + earlier[:, None, None], np.int32(0))


class Loader:
    """Make training batches for one worker; keep it over epochs, for its tiles and threads."""

    def __init__(
        self, source: Source, *, image_px: int, augment: AugmentConfig, seed: int, threads: int, wanted: LabelSpec = BOXES_ONLY
    ) -> None:
        self._source, self._image_px, self._augment, self._seed, self._wanted = source, image_px, augment, seed, wanted
        self._mirror = flipped_keypoint_order(wanted.keypoint_names)
        self._tiles = TileCache(TILE_CACHE_BYTES)
        self._makers = ThreadPoolExecutor(threads, thread_name_prefix="yolor-augment")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="yolor-read")

    def close(self) -> None:
        """End the threads."""
        self._makers.shutdown(cancel_futures=True)
        self._reader.shutdown(cancel_futures=True)

    def epoch(self, windows: Sequence[Window], steps: Sequence[Step], *, epoch: int, plain: bool = False) -> Iterator[Batch]:
        """Yield the batches of `steps` in order; `plain` leaves mosaic and mixup out."""
        augment = replace(self._augment, mosaic=0.0, mixup=0.0) if plain else self._augment
        contents = self._read_ahead(windows, steps)
        largest = max((len(step.records) for step in steps), default=0)
        buffers = [np.empty((largest, self._image_px, self._image_px, 3), np.uint8) for _ in range(BATCHES_AHEAD + 2)]
        pending: deque[_Pending] = deque()
        for number, step in enumerate(steps):
            loaded = contents(number)
            images = buffers[number % len(buffers)][: len(step.records)]
            samples = [
                self._makers.submit(self._sample, int(record), windows[w].order, loaded[w], epoch, augment, image)
                for record, w, image in zip(step.records, step.windows, images, strict=True)
            ]
            pending.append(_Pending(images, samples))
            if len(pending) > BATCHES_AHEAD:
                yield pending.popleft().batch()
        while pending:
            yield pending.popleft().batch()

    def _read_ahead(self, windows: Sequence[Window], steps: Sequence[Step]) -> Callable[[int], dict[int, Future[Records]]]:
        """Return a function that gives the windows of a step, reads the next one meanwhile and forgets those before."""
        needed = deque(dict.fromkeys(int(w) for step in steps for w in step.windows))
        last_step = {int(w): number for number, step in enumerate(steps) for w in step.windows}
        tables = self._source([group for w in needed for group in windows[w].groups])
        loaded: dict[int, Future[Records]] = {}

        def contents(number: int) -> dict[int, Future[Records]]:
            for w in [w for w in loaded if last_step[w] < number]:
                del loaded[w]
            wanted = {int(w) for w in steps[number].windows}
            while needed and not wanted < loaded.keys():
                w = needed.popleft()
                loaded[w] = self._reader.submit(_read_window, tables, windows[w])
            return loaded

        return contents

    def _sample(
        self, record: int, partners: np.ndarray, window: Future[Records], epoch: int, augment: AugmentConfig, out: np.ndarray
    ) -> SampleLabels:
        known = window.result()

        def tile_of(number: int) -> Tile:
            found, member = known[number]
            return self._tiles.get(number, lambda: make_tile(found, self._image_px, self._wanted, member))

        rng = np.random.default_rng((self._seed, epoch, record))
        return training_sample(record, partners, tile_of, rng, augment, out, self._mirror)


def _read_window(tables: Iterator[pa.Table], window: Window) -> Records:
    """Take the window's row groups from the source and number their records."""
    known: Records = {}
    for group in window.groups:
        known.update(enumerate(((record, group.member) for record in records(next(tables))), start=group.first_record))
    return known

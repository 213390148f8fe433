"""Load a worker's steps as batches: decode and augment images in threads, ahead of the consumer, into reused buffers.

Encoded bytes come in whole row groups from a `Source`. Decoded tiles are cached while they fit, so that mosaics cost no second
decode. A sample depends on seed, record and the epoch of its dataset alone, not on the thread that makes it.
Legend: B images, S side of the square network input in pixels.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from yolor_ray.config import AugmentConfig
from yolor_ray.data.augment.keypoint_flip import flipped_keypoint_order
from yolor_ray.data.augment.label_spec import BOXES_ONLY, LabelSpec
from yolor_ray.data.augment.labels import SampleLabels
from yolor_ray.data.augment.tile import Tile, TileCache, make_tile
from yolor_ray.data.augment.transforms import training_sample
from yolor_ray.data.loading.batch import Batch, make_batch
from yolor_ray.data.loading.epoch_plan import Step, windows_in_use
from yolor_ray.data.loading.epoch_windows import Window
from yolor_ray.data.shards.dataset import RowGroup, to_records
from yolor_ray.data.shards.records import Record

TILE_CACHE_BYTES = 512 * 2**20
"""Memory budget of each worker's decoded tiles."""
BATCHES_AHEAD = 2
"""Batches in preparation while the consumer holds one."""
BUFFERS = BATCHES_AHEAD + 2
"""Batches whose images are in memory: those ahead, the consumer's, and the one before."""

Records = dict[int, tuple[Record, int]]
"""Records by number, each with the index of its dataset in a union."""
Windows = Sequence[Window] | Mapping[int, Window]
"""Windows of an epoch by their index; of a part of an epoch, those that its steps need."""
Source = Callable[[Iterable[RowGroup]], Iterator[pa.Table]]
"""Yields the tables of row groups, in the order of the groups passed in, which are taken as they are needed."""


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

    def epoch(
        self,
        windows: Windows,
        steps: Sequence[Step],
        *,
        mosaic_closed: bool = False,
        buffers: Sequence[np.ndarray] = (),
    ) -> Iterator[Batch]:
        """Yield the batches of `steps` in order.

        Args:
            windows: windows of the epoch, by their index.
            steps: steps of this worker, or a part of them.
            mosaic_closed: augment without mosaic and mixup.
            buffers: arrays (largest B, S, S, 3) uint8 for the images of the batches, taken in turns; empty for `BUFFERS` new ones.
        """
        augment = replace(self._augment, mosaic=0.0, mixup=0.0) if mosaic_closed else self._augment
        windows_of_step = self._read_ahead(windows, steps)
        if not buffers:
            shape = (max((len(step.records) for step in steps), default=0), self._image_px, self._image_px, 3)
            buffers = [np.empty(shape, np.uint8) for _ in range(BUFFERS)]
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

    def _read_ahead(self, windows: Windows, steps: Sequence[Step]) -> Callable[[Step], dict[int, Future[Records]]]:
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

"""Turn a worker's steps into batches: decode and vary images in threads, ahead of the consumer, into reused buffers.

Encoded bytes come in whole row groups from a `Source`; decoded tiles are kept while they fit, so that mosaics cost no
second decode. A sample depends on seed, epoch and record alone, whatever thread makes it.
Legend: B images, S side of the square network input in pixels, N boxes.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Lock

import cv2
import numpy as np
import pyarrow as pa

from yolor_ray.config import Augment
from yolor_ray.data.augment import Labelled, Tile, training_sample
from yolor_ray.data.decode import decode
from yolor_ray.data.plan import Step, Window
from yolor_ray.data.records import Record
from yolor_ray.data.shards import RowGroup, records
from yolor_ray.errors import ImageError

TILE_CACHE_BYTES = 512 * 2**20
"""Decoded tiles that each worker keeps."""
BATCHES_AHEAD = 2

Records = dict[int, Record]
Source = Callable[[Sequence[RowGroup]], Iterator[pa.Table]]
"""Yields the tables of row groups, in the order asked for."""


@dataclass(frozen=True)
class Batch:
    """Hold one batch of training images; `images` is overwritten when the next batch but one is asked for."""

    images: np.ndarray
    """(B, S, S, 3) uint8 RGB."""
    positions: np.ndarray
    """(N,) int64: which image of the batch each box is in."""
    labels: np.ndarray
    """(N,) int64."""
    boxes_xyxy: np.ndarray
    """(N, 4) float32, pixels of the network input."""


def records_per_window(image_px: int) -> int:
    """Return how many records are shuffled together: as many as fit the tile cache, 64 to 1024."""
    return int(np.clip(TILE_CACHE_BYTES // (3 * image_px**2), 64, 1024))


def make_tile(record: Record, image_px: int) -> Tile:
    """Decode a record so that its longer side is `image_px`; crowd regions are left out."""
    scale = image_px / max(record.width, record.height)
    size = max(round(record.width * scale), 1), max(round(record.height * scale), 1)
    try:
        image = decode(record.image, fit_px=image_px)
    except ImageError as error:
        raise ImageError(error.code, f"{record.name}: {error}") from error
    if (image.shape[1], image.shape[0]) != size:
        image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    single = ~record.objects.crowd
    return Tile(image, record.objects.boxes_xyxy[single] * np.float32(scale), record.objects.labels[single])


class _TileCache:
    """Keep the most recently used tiles within a budget; safe to share between threads."""

    def __init__(self, budget_bytes: int) -> None:
        self._tiles: OrderedDict[int, Tile] = OrderedDict()
        self._free = budget_bytes
        self._lock = Lock()

    def get(self, record: int, make: Callable[[], Tile]) -> Tile:
        with self._lock:
            if record in self._tiles:
                self._tiles.move_to_end(record)
                return self._tiles[record]
        tile = make()
        with self._lock:
            if record not in self._tiles:
                self._tiles[record] = tile
                self._free -= tile.image.nbytes
            while self._free < 0 and len(self._tiles) > 1:
                self._free += self._tiles.popitem(last=False)[1].image.nbytes
        return tile


@dataclass(frozen=True)
class _Pending:
    images: np.ndarray
    samples: list[Future[Labelled]]

    def batch(self) -> Batch:
        """Wait for the samples and gather their boxes."""
        labelled = [sample.result() for sample in self.samples]
        counts = [len(labels) for _, labels in labelled]
        boxes = np.concatenate([boxes for boxes, _ in labelled]).astype(np.float32)
        return Batch(self.images, np.repeat(np.arange(len(counts)), counts), np.concatenate([labels for _, labels in labelled]), boxes)


class Loader:
    """Make training batches for one worker; keep it over epochs, for its tiles and threads."""

    def __init__(self, source: Source, *, image_px: int, augment: Augment, seed: int, threads: int) -> None:
        self._source, self._image_px, self._augment, self._seed = source, image_px, augment, seed
        self._tiles = _TileCache(TILE_CACHE_BYTES)
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
        self, record: int, partners: np.ndarray, window: Future[Records], epoch: int, augment: Augment, out: np.ndarray
    ) -> Labelled:
        known = window.result()

        def tile_of(number: int) -> Tile:
            return self._tiles.get(number, lambda: make_tile(known[number], self._image_px))

        rng = np.random.default_rng((self._seed, epoch, record))
        return training_sample(record, partners, tile_of, rng, augment, out)


def _read_window(tables: Iterator[pa.Table], window: Window) -> Records:
    """Take the window's row groups from the source and number their records."""
    known: Records = {}
    for group in window.groups:
        known.update(enumerate(records(next(tables)), start=group.first_record))
    return known

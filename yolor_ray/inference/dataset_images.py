"""TODO module docstring."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from yolor_ray.data.images.decode import decode
from yolor_ray.data.images.letterbox import Letterbox, letterbox
from yolor_ray.data.shards.dataset import Dataset, RowGroup, read_row_group, records
from yolor_ray.data.shards.records import Record
from yolor_ray.errors import ImageError

BATCHES_AHEAD = 2


Item = TypeVar("Item")


@dataclass(frozen=True)
class Batch:
    """Neighbouring images of one row group, ready for the network."""

    images: np.ndarray
    """(B, S, S, 3) uint8 RGB."""
    letterboxes: tuple[Letterbox, ...]
    """Where each image lies in its square."""
    records: tuple[Record, ...]
    """What the images come from."""
    first_id: int
    """Image id of the first; the others count on from it."""


def images_of(dataset: Dataset, groups: Sequence[RowGroup], image_px: int, batch: int, threads: int = 1) -> Iterator[Batch]:
    """Yield every image of the row groups once, in order; reading and decoding run ahead in threads.

    No batch crosses a row group, so that the same images share a forward pass however the groups are spread.
    """
    with ThreadPoolExecutor(threads) as decoders:
        yield from _ahead(_batches(dataset, groups, image_px, batch, decoders))


def _ahead(items: Iterator[Item]) -> Iterator[Item]:
    with ThreadPoolExecutor(1) as maker:
        coming = deque(maker.submit(next, items, None) for _ in range(BATCHES_AHEAD))
        try:
            while (item := coming.popleft().result()) is not None:
                coming.append(maker.submit(next, items, None))
                yield item
        finally:
            maker.shutdown(cancel_futures=True)


def _batches(dataset: Dataset, groups: Sequence[RowGroup], image_px: int, batch: int, decoders: ThreadPoolExecutor) -> Iterator[Batch]:
    for group in groups:
        found = records(read_row_group(dataset, group))
        for start in range(0, len(found), batch):
            part = found[start : start + batch]
            images = np.empty((len(part), image_px, image_px, 3), np.uint8)
            boxes = decoders.map(_fit, part, images, [dataset.url] * len(part))
            yield Batch(images, tuple(boxes), tuple(part), group.first_record + start)


def _fit(record: Record, out: np.ndarray, url: str) -> Letterbox:
    return letterbox(pixels_of(record, url, len(out)), record.width, record.height, out)


def pixels_of(record: Record, url: str, fit_px: int | None = None) -> np.ndarray:
    """Return a record's image, (H, W, 3) uint8 RGB, made smaller by `fit_px` as `decode` does.

    Raises:
        ImageError: it cannot be decoded; the message names it and the data set.
    """
    try:
        return decode(record.image, fit_px=fit_px)
    except ImageError as error:
        raise ImageError(error.code, f"{url}, image {record.name!r}: {error}") from error

"""Read the images of a packed dataset in batches, decoded and letterboxed for the network.

Reading and decoding run ahead in threads, beside the network.
Legend: B images, S side of the square network input in pixels.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from yolor_ray.data.images.decode import decode
from yolor_ray.data.images.letterbox import Letterbox, letterbox
from yolor_ray.data.shards.dataset import Dataset, RowGroup, read_row_group, to_records
from yolor_ray.data.shards.records import Record
from yolor_ray.errors import ImageError

PREFETCHED_BATCHES = 2

Item = TypeVar("Item")


@dataclass(frozen=True)
class ImageBatch:
    """Consecutive images of one row group, ready for the network."""

    images: np.ndarray
    """(B, S, S, 3) uint8 RGB."""
    letterboxes: tuple[Letterbox, ...]
    """Position of each image in its square."""
    records: tuple[Record, ...]
    """Records of the images."""
    first_id: int
    """Image id of the first image; ids of the others follow."""
    member: int
    """Index of the images' dataset within a union."""


def image_batches(dataset: Dataset, groups: Sequence[RowGroup], image_px: int, batch: int, decode_threads: int = 1) -> Iterator[ImageBatch]:
    """Yield every image of the row groups once, in order, in batches of at most `batch` images.

    No batch crosses a row group. The same images thus share a forward pass however row groups are spread over workers.
    """
    with ThreadPoolExecutor(decode_threads) as decoders:
        yield from _prefetch(_batches(dataset, groups, image_px, batch, decoders))


def _prefetch(items: Iterator[Item]) -> Iterator[Item]:
    with ThreadPoolExecutor(1) as reader:
        pending = deque(reader.submit(next, items, None) for _ in range(PREFETCHED_BATCHES))
        try:
            while (item := pending.popleft().result()) is not None:
                pending.append(reader.submit(next, items, None))
                yield item
        finally:
            reader.shutdown(cancel_futures=True)


def _batches(dataset: Dataset, groups: Sequence[RowGroup], image_px: int, batch: int, decoders: ThreadPoolExecutor) -> Iterator[ImageBatch]:
    for group in groups:
        group_records = to_records(read_row_group(dataset, group))
        for start in range(0, len(group_records), batch):
            batch_records = group_records[start : start + batch]
            images = np.empty((len(batch_records), image_px, image_px, 3), np.uint8)
            letterboxes = decoders.map(_letterbox_record, batch_records, images, [dataset.url] * len(batch_records))
            yield ImageBatch(images, tuple(letterboxes), tuple(batch_records), group.first_record + start, group.member)


def _letterbox_record(record: Record, out: np.ndarray, url: str) -> Letterbox:
    return letterbox(decode_record(record, url, len(out)), record.width, record.height, out)


def decode_record(record: Record, url: str, fit_px: int | None = None) -> np.ndarray:
    """Decode the image of a record, (H, W, 3) uint8 RGB; `fit_px` reduces the image as `decode` does.

    Raises:
        ImageError: the image cannot be decoded; the message names the image and the dataset.
    """
    try:
        return decode(record.image, fit_px=fit_px)
    except ImageError as error:
        raise ImageError(error.code, f"{url}, image {record.name!r}: {error}") from error

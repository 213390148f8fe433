"""Copy a dataset into a training set and a validation set: a share of the images is held out, by the content of each image.

The copies are complete datasets, so that training reads them like any others. The same dataset and share give the same copies.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from yolor_ray.class_names import digested_names
from yolor_ray.data.shards.dataset import (
    MANIFEST,
    Dataset,
    Shard,
    dataset_digest,
    encode_shard,
    open_dataset,
    read_row_group,
    to_records,
    write_dataset,
)
from yolor_ray.data.shards.image_hashes import image_hashes, is_held_out
from yolor_ray.data.shards.records import Record
from yolor_ray.data.shards.union import unite
from yolor_ray.errors import DataError
from yolor_ray.io import storage

MANY_HELD_OUT = 100
"""Expected number of held-out images from which at least one is certain."""
PROGRESS: dict[str, Any] = {"mininterval": 1, "delay": 3}
"""Settings of tqdm: no bar for a small dataset."""
TRAIN, VAL = "train", "val"
"""Folders of the two copies."""


def split_dataset(dataset: Dataset, folder: str, share: float) -> tuple[Dataset, Dataset]:
    """Return the copies of the kept and of the held-out images; copies that are already in the folder are opened.

    Args:
        dataset: dataset, or union of datasets; each is copied on its own.
        folder: URL of the folder for copies.
        share: share of the images to hold out, over 0 and under 1; at least one image is held out.

    Raises:
        DataError: all images are equal, or the share takes all of them, so that none is left to train on.

    """
    share = _sufficient_share(dataset, folder, share)
    pairs = [_copy(member, storage.join(folder, f"{member.digest[:12]}-{share!r}"), share) for member in dataset.members or (dataset,)]
    train, val = (unite(copies) if dataset.members else copies[0] for copies in zip(*pairs, strict=True))
    if not train.images or not val.images:
        found = f"found {dataset.images} images, and a hold_out of {share:.4g} takes all or none of them"
        raise DataError(f"{dataset.url}: {found}; expected different images, and a share that leaves some to train on")
    return train, val


def _sufficient_share(dataset: Dataset, folder: str, share: float) -> float:
    """Return `share`, or for a small dataset the next larger share that holds one image out."""
    if dataset.images * share > MANY_HELD_OUT:
        return share
    smallest = int(image_hashes(dataset, folder).min())
    return max(share, math.nextafter(smallest / 2**64, 1.0))


def _copy(dataset: Dataset, folder: str, share: float) -> tuple[Dataset, Dataset]:
    """Write the two copies of a single dataset, shard by shard, and return them."""
    urls = [storage.join(folder, name) for name in (TRAIN, VAL)]
    if not all(storage.exists(storage.join(url, MANIFEST)) for url in urls):
        copies = [_Copy(dataset, url) for url in urls]
        for shard in tqdm(dataset.shards, desc="holding out", unit="shard", **PROGRESS):
            groups = [group for group in dataset.row_groups if group.shard == shard.name]
            records = [record for group in groups for record in to_records(read_row_group(dataset, group))]
            held_out = [is_held_out(record.image, share) for record in records]
            for copy, side in zip(copies, (False, True), strict=True):
                copy.add([record for record, is_held in zip(records, held_out, strict=True) if is_held is side])
        for copy in copies:
            copy.publish()
    train, val = map(open_dataset, urls)
    return train, val


class _Copy:
    """A dataset that is being written: its shards so far, and its numbers."""

    def __init__(self, source: Dataset, url: str) -> None:
        self._source, self._url = source, url
        self._shards: list[Shard] = []
        self._boxes: Counter[int] = Counter()
        self._crowds = 0
        self._tasks: set[str] = set()

    def add(self, records: Sequence[Record]) -> None:
        """Write records as the next shard."""
        if not records:
            return
        data, shard = encode_shard(records, len(self._shards))
        storage.write_bytes(storage.join(self._url, shard.name), data)
        self._shards.append(shard)
        for record in records:
            self._boxes.update(record.objects.labels.tolist())
            self._crowds += int(record.objects.crowd.sum())
            self._tasks.update(record.tasks)

    def publish(self) -> None:
        """Write the manifest."""
        source, shards = self._source, tuple(self._shards)
        copied = replace(
            source,
            url=self._url,
            tasks=tuple(sorted(self._tasks)),
            images=sum(shard.rows for shard in shards),
            boxes=self._boxes.total(),
            boxes_per_class={name: self._boxes[label] for label, name in enumerate(source.classes)},
            shards=shards,
            digest=dataset_digest(shards, *digested_names(source)),
            faults={},
            crowds=self._crowds,
            hashes_sha256="",
        )
        write_dataset(copied)

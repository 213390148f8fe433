"""Bring encoded row groups to training workers: from Ray's object store where the dataset fits, else from storage.

Only encoded bytes travel; workers decode. The order of row groups is the epoch plan's. The object store fills while training runs: until a
row group has arrived there, workers read it from storage.
"""

import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from yolor_ray.data.loading.loader import Source
from yolor_ray.data.loading.read_ahead import read_ahead
from yolor_ray.data.shards.dataset import Dataset, RowGroup, read_row_group

logger = logging.getLogger(__name__)

OBJECT_STORE_SHARE = 0.3
"""Largest share of the cluster's object store that a dataset may take."""
READS_AHEAD = 4
"""Row groups that a worker reads, or holds, ahead of its loader; a row group has at most 64 images and about 32 MB."""
READERS_PER_NODE = 2
"""Row groups that a node reads at a time into its object store, beside training."""


def direct_source(dataset: Dataset) -> Source:
    """Return a source that reads row groups from storage in threads of this process."""
    return functools.partial(_in_order, functools.partial(read_row_group, dataset))


def _in_order(take: Callable[[RowGroup], pa.Table], groups: Iterable[RowGroup]) -> Iterator[pa.Table]:
    """Yield the tables in order, while others are read ahead."""
    threads = ThreadPoolExecutor(READS_AHEAD, thread_name_prefix="yolor-read-ahead")
    try:
        yield from read_ahead(threads, take, groups, READS_AHEAD)
    finally:
        # The end of an epoch does not wait for a read that hangs.
        threads.shutdown(wait=False)


class _Reader:
    """Reader of row groups into the object store of its node, an actor."""

    def read(self, dataset: Dataset, group: RowGroup) -> pa.Table:
        """Return a row group, which Ray keeps in the object store."""
        return read_row_group(dataset, group)


@dataclass(frozen=True)
class ObjectStoreSource:
    """Source of row groups that the object store holds, or will hold."""

    dataset: Dataset
    tables: dict[RowGroup, ray.ObjectRef]
    readers: list[Any]
    """Actors, which live as long as the source."""

    def __call__(self, groups: Iterable[RowGroup]) -> Iterator[pa.Table]:
        """Yield the tables in order, without copies; what is not in the object store is read from storage."""
        return _in_order(self._table, groups)

    def _table(self, group: RowGroup) -> pa.Table:
        ready, _ = ray.wait([self.tables[group]], timeout=0, fetch_local=False)
        try:
            return ray.get(ready[0]) if ready else read_row_group(self.dataset, group)
        except ray.exceptions.RayError as error:
            # The block was lost with its node, or its reader failed. A fault of the storage itself is raised by the second reading.
            logger.warning("event=block_lost shard=%s row_group=%d reason=%s", group.shard, group.index, type(error).__name__)
            return read_row_group(self.dataset, group)


def cluster_source(dataset: Dataset) -> Source:
    """Return a source for workers of a running cluster; a dataset that fits is read into the object store from this call on."""
    size = sum(shard.bytes for shard in dataset.shards)
    limit = ray.cluster_resources().get("object_store_memory", 0) * OBJECT_STORE_SHARE
    fits = size <= limit
    logger.info("event=ingest mode=%s dataset_mb=%.1f limit_mb=%.1f", "object_store" if fits else "direct", size / 1e6, limit / 1e6)
    return kept_source(dataset) if fits else direct_source(dataset)


def kept_source(dataset: Dataset) -> ObjectStoreSource:
    """Let an actor on each node read its share of the row groups into the object store, and return their source."""
    nodes = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=True) for node in ray.nodes() if node["Alive"]]
    # Without a CPU of their own, readers neither wait for workers nor keep a worker from starting.
    options = {"num_cpus": 0, "max_concurrency": READERS_PER_NODE}
    readers: list[Any] = [ray.remote(_Reader).options(**options, scheduling_strategy=node).remote() for node in nodes]
    # The description of all shards of ten million records has 12 MB, too much for each call.
    first_of_shard = {(group.member, group.shard): group for group in reversed(dataset.row_groups)}
    parts = {shard: ray.put(dataset.with_shard_of(group)) for shard, group in first_of_shard.items()}
    turns = zip(dataset.row_groups, itertools.cycle(readers), strict=False)
    tables = {group: reader.read.remote(parts[group.member, group.shard], group) for group, reader in turns}
    return ObjectStoreSource(dataset, tables, readers)

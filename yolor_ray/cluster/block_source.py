"""Bring encoded row groups to training workers: from Ray's object store where the dataset fits, else streamed by Ray Data.

Only encoded bytes travel; workers decode. The order of row groups is the epoch plan's, never Ray's. The object store fills while training
runs: until a row group has arrived there, workers read it from storage.
"""

import itertools
import logging
import pickle
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.data import DataContext, ExecutionOptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from yolor_ray.data.loading.loader import Source
from yolor_ray.data.shards.dataset import Dataset, RowGroup, read_row_group

logger = logging.getLogger(__name__)

OBJECT_STORE_SHARE = 0.3
"""Largest share of the cluster's object store that a dataset may take."""
GROUPS_PER_STREAM = 1024
"""Row groups of one Ray dataset, each of which waits for a new executor; Ray Data makes a block of each before it reads the first."""
READ_CPUS = 0.25
"""Logical CPUs of a read task, which waits for storage more than it computes."""
READERS_PER_NODE = 2
"""Row groups that a node reads at a time into its object store, beside training."""


def direct_source(dataset: Dataset) -> Source:
    """Return a source that reads row groups from storage, for training in this process."""
    return lambda groups: (read_row_group(dataset, group) for group in groups)


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
        return (self._table(group) for group in groups)

    def _table(self, group: RowGroup) -> pa.Table:
        ready, _ = ray.wait([self.tables[group]], timeout=0, fetch_local=False)
        try:
            return ray.get(ready[0]) if ready else read_row_group(self.dataset, group)
        except ray.exceptions.RayError as error:
            # The block was lost with its node, or its reader failed. A fault of the storage itself is raised by the second reading.
            logger.warning("event=block_lost shard=%s row_group=%d reason=%s", group.shard, group.index, type(error).__name__)
            return read_row_group(self.dataset, group)


@dataclass(frozen=True)
class StreamedSource:
    """Source of row groups that Ray Data reads ahead, on any CPUs of the cluster."""

    dataset: Dataset

    def __call__(self, groups: Iterable[RowGroup]) -> Iterator[pa.Table]:
        """Yield the tables in order and read two of them ahead."""
        groups = iter(groups)
        while part := list(itertools.islice(groups, GROUPS_PER_STREAM)):
            yield from _stream(self.dataset, part).iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)


def _stream(dataset: Dataset, groups: Sequence[RowGroup]) -> ray.data.Dataset:
    """Return a Ray dataset with one block per row group, in order."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options = ExecutionOptions(preserve_order=True)
    first_of_shard = {(group.member, group.shard): group for group in reversed(groups)}
    # A row has its own shard: the description of all shards of ten million records has 12 MB, too much for each task.
    parts = {shard: pickle.dumps(dataset.with_shard_of(group)) for shard, group in first_of_shard.items()}
    rows: list[dict[str, Any]] = [{"dataset": parts[group.member, group.shard], "group": pickle.dumps(group)} for group in groups]
    items = ray.data.from_items(rows, override_num_blocks=len(groups))
    return items.map_batches(_read_row, batch_size=None, batch_format="pyarrow", num_cpus=READ_CPUS)


def _read_row(block: pa.Table) -> pa.Table:
    """Read the row group that a row names, in a task of Ray Data."""
    return read_row_group(*(pickle.loads(block[name][0].as_py()) for name in ("dataset", "group")))


def cluster_source(dataset: Dataset) -> Source:
    """Return a source for workers of a running cluster; a dataset that fits is read into the object store from this call on."""
    size = sum(shard.bytes for shard in dataset.shards)
    limit = ray.cluster_resources().get("object_store_memory", 0) * OBJECT_STORE_SHARE
    mode = "object_store" if size <= limit else "streamed"
    logger.info("event=ingest mode=%s dataset_mb=%.1f limit_mb=%.1f", mode, size / 1e6, limit / 1e6)
    return kept_source(dataset) if size <= limit else streamed_source(dataset)


def streamed_source(dataset: Dataset) -> StreamedSource:
    """Return a source that streams row groups of any number."""
    return StreamedSource(dataset)


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

"""Bring encoded row groups to training workers: kept in Ray's object store where they fit, else streamed by Ray Data.

Only encoded bytes travel; workers decode. The order is the epoch plan's, never Ray's.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.data import DataContext, ExecutionOptions

from yolor_ray.data.loading.loader import Source
from yolor_ray.data.shards.dataset import Dataset, RowGroup, read_row_group

logger = logging.getLogger(__name__)

KEPT_SHARE = 0.3
"""Largest share of the cluster's object store that a data set may take to be kept there."""
READ_CPUS = 0.25
"""Logical CPUs of a read: it waits more than it computes."""


def direct_source(dataset: Dataset) -> Source:
    """Return a source that reads row groups itself: for training inside this process."""
    return lambda groups: (read_row_group(dataset, group) for group in groups)


@dataclass(frozen=True)
class KeptSource:
    """Take row groups from the object store."""

    dataset: Dataset
    tables: dict[RowGroup, ray.ObjectRef]

    def __call__(self, groups: Sequence[RowGroup]) -> Iterator[pa.Table]:
        """Yield the tables in order, without copying; what was lost with its node is read again."""
        return (self._table(group) for group in groups)

    def _table(self, group: RowGroup) -> pa.Table:
        try:
            return ray.get(self.tables[group])
        except ray.exceptions.ObjectLostError:
            logger.warning("event=block_lost shard=%s row_group=%d", group.shard, group.index)
            return read_row_group(self.dataset, group)


@dataclass(frozen=True)
class StreamedSource:
    """Let Ray Data read ahead, on whatever CPUs the cluster has."""

    dataset: Dataset

    def __call__(self, groups: Sequence[RowGroup]) -> Iterator[pa.Table]:
        """Yield the tables in order, a few of them read ahead."""
        if not groups:
            return iter(())
        return iter(_stream(self.dataset, groups).iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2))


def _stream(dataset: Dataset, groups: Sequence[RowGroup]) -> ray.data.Dataset:
    """Return a Ray data set of one block per row group, in order."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options = ExecutionOptions(preserve_order=True)

    def read(block: pa.Table) -> pa.Table:
        return read_row_group(dataset, groups[block["position"][0].as_py()])

    positions: list[dict[str, Any]] = [{"position": position} for position in range(len(groups))]
    items = ray.data.from_items(positions, override_num_blocks=len(groups))
    return items.map_batches(read, batch_size=None, batch_format="pyarrow", num_cpus=READ_CPUS)


def cluster_source(dataset: Dataset) -> Source:
    """Return a source for workers of a running cluster; a data set that fits is read into the object store here and now."""
    size = sum(shard.bytes for shard in dataset.shards)
    room = ray.cluster_resources().get("object_store_memory", 0) * KEPT_SHARE
    logger.info("event=ingest mode=%s dataset_mb=%.1f room_mb=%.1f", "kept" if size <= room else "streamed", size / 1e6, room / 1e6)
    if size > room:
        return StreamedSource(dataset)
    kept = _stream(dataset, dataset.row_groups).materialize()
    return KeptSource(dataset, dict(zip(dataset.row_groups, kept.to_arrow_refs(), strict=True)))

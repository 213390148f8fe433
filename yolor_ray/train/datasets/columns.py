"""Read some columns of a training set's row groups before the first epoch, several row groups at a time."""

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from yolor_ray.data.loading.read_ahead import read_ahead
from yolor_ray.data.shards.dataset import Dataset, RowGroup, read_row_group

READERS = 8
"""Row groups that are read at a time, because a reader waits for storage most of the time."""


def read_columns(dataset: Dataset, columns: list[str], groups: Sequence[RowGroup]) -> Generator[pa.Table, None, None]:
    """Yield columns of row groups in their order; a caller that stops has let at most READERS further row groups be read.

    Raises:
        StorageError, DataError: as `read_row_group`.

    """
    with ThreadPoolExecutor(READERS, thread_name_prefix="yolor-columns") as readers:
        yield from read_ahead(readers, lambda group: read_row_group(dataset, group, columns), groups, READERS)

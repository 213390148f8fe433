"""Row groups that reach a consumer through Ray, from the object store or streamed, in the order of the plan."""

import time

import pytest
import ray

from yolor_ray.cluster import block_source
from yolor_ray.data.loading.loader import Source
from yolor_ray.data.shards.dataset import Dataset, open_dataset, to_records
from yolor_ray.pack.run import pack_scenes

# Ray emits deprecation warnings about its own settings while it copies them.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")


@pytest.fixture(scope="module")
def dataset(s3, ray_cluster) -> Dataset:
    url = f"{s3()}/scenes"
    pack_scenes(url, 200, seed=0)
    return open_dataset(url)


def names(source: Source, dataset: Dataset, order: list[int]) -> list[str]:
    groups = [dataset.row_groups[position] for position in order]
    return [record.name for table in source(groups) for record in to_records(table)]


@pytest.mark.parametrize(("share", "source_type"), [(0.3, block_source.ObjectStoreSource), (0.0, block_source.StreamedSource)])
def test_ray_brings_whole_row_groups_in_the_order_of_the_plan(dataset: Dataset, monkeypatch, share: float, source_type: type) -> None:
    monkeypatch.setattr(block_source, "OBJECT_STORE_SHARE", share)
    source = block_source.cluster_source(dataset)
    assert isinstance(source, source_type)
    for order in ([0, 1, 2, 3], [3, 0, 2], [1]):
        assert names(source, dataset, order) == names(block_source.direct_source(dataset), dataset, order)


def test_a_row_group_that_has_not_arrived_or_was_lost_is_read_from_storage(dataset: Dataset, caplog) -> None:
    pending = ray.remote(num_cpus=0)(lambda: time.sleep(600)).remote()
    failed = ray.remote(num_cpus=0, max_retries=0)(lambda: int("lost")).remote()
    ray.wait([failed])
    first, second, *_ = dataset.row_groups
    source = block_source.ObjectStoreSource(dataset, {first: pending, second: failed}, [])
    assert names(source, dataset, [0, 1]) == names(block_source.direct_source(dataset), dataset, [0, 1])
    assert [record.getMessage() for record in caplog.records if "block_lost" in record.getMessage()] == [
        f"event=block_lost shard={second.shard} row_group={second.index} reason=RayTaskError(ValueError)"
    ]
    ray.cancel(pending, force=True)


def test_a_dataset_arrives_in_the_object_store(dataset: Dataset, monkeypatch) -> None:
    expected = names(block_source.direct_source(dataset), dataset, [3, 0, 1, 2])
    source = block_source.cluster_source(dataset)
    arrived, _ = ray.wait(list(source.tables.values()), num_returns=len(source.tables), timeout=180)
    assert len(arrived) == len(dataset.row_groups)
    monkeypatch.setattr(block_source, "read_row_group", None)
    assert names(source, dataset, [3, 0, 1, 2]) == expected


def test_the_description_of_a_shard_is_sent_once(dataset: Dataset, monkeypatch) -> None:
    sent: list[Dataset] = []
    put = ray.put
    monkeypatch.setattr(ray, "put", lambda part: sent.append(part) or put(part))
    source = block_source.cluster_source(dataset)
    assert len(source.tables) == len(dataset.row_groups) > len(dataset.shards)
    assert [part.shards for part in sent] == [(shard,) for shard in dataset.shards]


def test_a_long_epoch_is_streamed_in_parts(dataset: Dataset, monkeypatch) -> None:
    monkeypatch.setattr(block_source, "GROUPS_PER_STREAM", 2)
    source = block_source.StreamedSource(dataset)
    asked: list[int] = []
    tables = source(dataset.row_groups[asked.append(position) or position] for position in (2, 0, 3))
    first = [record.name for record in to_records(next(tables))]
    assert first == names(block_source.direct_source(dataset), dataset, [2]) and asked == [2, 0]
    assert [record.name for table in tables for record in to_records(table)] == names(block_source.direct_source(dataset), dataset, [0, 3])


def test_an_empty_request_reads_nothing(dataset: Dataset) -> None:
    assert list(block_source.StreamedSource(dataset)([])) == []

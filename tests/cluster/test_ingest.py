"""Row groups that reach a consumer, from Ray's object store or from storage, in the order of the plan."""

import threading
import time

import pytest
import ray

from yolor_ray.cluster import block_source
from yolor_ray.data.loading.loader import Source
from yolor_ray.data.shards.dataset import Dataset, RowGroup, open_dataset, read_row_group, to_records
from yolor_ray.pack.run import pack_scenes

# Ray emits deprecation warnings about its own settings while it copies them.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")


@pytest.fixture(scope="module")
def dataset(s3, ray_cluster) -> Dataset:
    url = f"{s3()}/scenes"
    pack_scenes(url, 200, seed=0)
    return open_dataset(url)


def expected_names(dataset: Dataset, order: list[int]) -> list[str]:
    """Read the names of the records without a source."""
    groups = [dataset.row_groups[position] for position in order]
    return [record.name for group in groups for record in to_records(read_row_group(dataset, group))]


def names(source: Source, dataset: Dataset, order: list[int]) -> list[str]:
    groups = [dataset.row_groups[position] for position in order]
    return [record.name for table in source(groups) for record in to_records(table)]


@pytest.mark.parametrize(("share", "is_kept"), [(0.3, True), (0.0, False)])
def test_whole_row_groups_arrive_in_the_order_of_the_plan(dataset: Dataset, monkeypatch, share: float, is_kept: bool) -> None:
    monkeypatch.setattr(block_source, "OBJECT_STORE_SHARE", share)
    source = block_source.cluster_source(dataset)
    assert isinstance(source, block_source.ObjectStoreSource) == is_kept
    for order in ([0, 1, 2, 3], [3, 0, 2], [1], [2, 1, 0, 3, 1, 1, 2, 0, 3]):
        assert names(source, dataset, order) == expected_names(dataset, order)
    assert list(source([])) == []


def test_a_row_group_that_has_not_arrived_or_was_lost_is_read_from_storage(dataset: Dataset, caplog) -> None:
    pending = ray.remote(num_cpus=0)(lambda: time.sleep(600)).remote()
    failed = ray.remote(num_cpus=0, max_retries=0)(lambda: int("lost")).remote()
    ray.wait([failed])
    first, second, *_ = dataset.row_groups
    source = block_source.ObjectStoreSource(dataset, {first: pending, second: failed}, [])
    assert names(source, dataset, [0, 1]) == expected_names(dataset, [0, 1])
    assert [record.getMessage() for record in caplog.records if "block_lost" in record.getMessage()] == [
        f"event=block_lost shard={second.shard} row_group={second.index} reason=RayTaskError(ValueError)"
    ]
    ray.cancel(pending, force=True)


def test_a_dataset_arrives_in_the_object_store(dataset: Dataset, monkeypatch) -> None:
    expected = expected_names(dataset, [3, 0, 1, 2])
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


@pytest.mark.parametrize("is_kept", [True, False])
def test_few_row_groups_are_read_ahead_of_the_consumer(dataset: Dataset, monkeypatch, is_kept: bool) -> None:
    monkeypatch.setattr(block_source, "read_row_group", lambda _, group: group)
    pending = ray.remote(num_cpus=0)(lambda: time.sleep(600)).remote()
    kept = block_source.ObjectStoreSource(dataset, dict.fromkeys(dataset.row_groups, pending), [])
    source = kept if is_kept else block_source.direct_source(dataset)
    order = [dataset.row_groups[number % 4] for number in range(40)]
    taken: list[RowGroup] = []
    for number, group in enumerate(source(taken.append(group) or group for group in order), start=1):
        assert group == order[number - 1]
        assert len(taken) == min(number + block_source.READS_AHEAD, len(order))
    ray.cancel(pending, force=True)


def test_row_groups_are_read_at_the_same_time(dataset: Dataset, monkeypatch) -> None:
    together = threading.Barrier(block_source.READS_AHEAD, timeout=60)
    monkeypatch.setattr(block_source, "read_row_group", lambda _, group: together.wait() is None or group)
    groups = list(dataset.row_groups)
    assert len(groups) == block_source.READS_AHEAD
    assert list(block_source.direct_source(dataset)(groups)) == groups

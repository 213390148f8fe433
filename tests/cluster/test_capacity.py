"""Capacity of a simulated cluster: the number of workers, the wait for them, and the requests to an autoscaler."""

from types import SimpleNamespace

import pytest

from yolor_ray.cluster import capacity
from yolor_ray.cluster.stop_signal import never_stop
from yolor_ray.config import ClusterConfig
from yolor_ray.errors import CapacityError, ConfigError

WORKERS = ClusterConfig(workers="2-4", gpu=True)


@pytest.fixture
def cluster(monkeypatch) -> SimpleNamespace:
    """Return a cluster of nodes with one GPU each: `free` and `total` resources by node.

    The clock advances only in `sleep`; `events` are functions by the time of their call.
    """
    cluster = SimpleNamespace(free={}, total={}, draining={}, limits=None, requests=[], now=0.0, events={})

    def sleep(seconds: float) -> None:
        cluster.now += seconds
        for time in [time for time in cluster.events if time <= cluster.now]:
            cluster.events.pop(time)()

    monkeypatch.setattr(capacity, "available_resources_per_node", lambda: cluster.free)
    monkeypatch.setattr(capacity, "total_resources_per_node", lambda: cluster.total)
    monkeypatch.setattr(capacity, "get_draining_nodes", lambda: cluster.draining)
    monkeypatch.setattr(capacity, "get_max_resources_from_cluster_config", lambda: cluster.limits)
    monkeypatch.setattr(capacity.ray, "nodes", lambda: [{"NodeID": node, "Alive": True} for node in cluster.total])
    monkeypatch.setattr(capacity.ray, "cluster_resources", lambda: {"GPU": float(len(cluster.total))})
    monkeypatch.setattr(capacity, "request_resources", lambda bundles: cluster.requests.append(len(bundles)))
    monkeypatch.setattr(capacity, "time", SimpleNamespace(monotonic=lambda: cluster.now, sleep=sleep))
    return cluster


def nodes(*names: str) -> dict[str, dict[str, float]]:
    return {name: {"GPU": 1.0} for name in names}


def test_the_largest_number_of_workers_starts_at_once_where_it_fits(cluster) -> None:
    cluster.free = cluster.total = nodes(*"abcdef")
    assert capacity.wait_for_capacity(WORKERS, never_stop) == 4
    assert cluster.now == 0


def test_the_resources_of_a_lost_attempt_are_waited_for_until_they_settle(cluster) -> None:
    cluster.total, cluster.free = nodes(*"abc"), nodes("a", "b")
    assert capacity.wait_for_capacity(WORKERS, never_stop) == 2
    assert capacity.SETTLE_S < cluster.now < capacity.SETTLE_S + 2


@pytest.mark.parametrize(
    ("total", "reason"), [("abc", "other jobs hold the resources"), ("a", "the nodes have too few resources")], ids=["busy", "small"]
)
def test_a_wait_is_explained_soon(cluster, caplog, total: str, reason: str) -> None:
    cluster.total = nodes(*total)
    cluster.events[12.0] = lambda: cluster.free.update(nodes(*"abc"))
    cluster.events[11.0] = lambda: cluster.total.update(nodes(*"abc"))
    assert capacity.wait_for_capacity(WORKERS, never_stop) == 3
    [line] = [record.getMessage() for record in caplog.records]
    expected = f"event=waiting_for_nodes schedulable=0 min_workers=2 per_worker='1 GPU' reason='{reason}' waited_s="
    assert line.startswith(expected) and float(line.removeprefix(expected).split()[0]) < 10


def test_a_draining_node_has_no_capacity(cluster) -> None:
    cluster.free = cluster.total = nodes(*"abc")
    cluster.draining = {"a": {}}
    assert capacity.wait_for_capacity(WORKERS, never_stop) == 2


def test_the_wait_for_the_fewest_workers_ends_after_half_an_hour(cluster) -> None:
    cluster.free = cluster.total = nodes("a")
    cluster.events[100.0] = lambda: cluster.total.update(nodes("b"))
    assert capacity.wait_for_capacity(WORKERS, never_stop) == 2
    assert 100 <= cluster.now < 101
    cluster.total.pop("b")
    message = r"found capacity for 1 workers for 1800 s, expected 2; the same command resumes the run"
    with pytest.raises(CapacityError, match=message):
        capacity.wait_for_capacity(WORKERS, never_stop)


def test_a_stop_signal_ends_the_wait(cluster) -> None:
    assert capacity.wait_for_capacity(WORKERS, lambda: "SIGTERM" if cluster.now >= 50 else "") == 0
    assert cluster.now == 50


def test_the_autoscaler_is_asked_for_the_largest_number_beside_resources_in_use_and_again_while_waiting(cluster) -> None:
    cluster.limits, cluster.total, cluster.free = {"GPU": 8.0}, nodes(*"abc"), nodes("a")
    cluster.events[70.0] = lambda: cluster.free.update(nodes("b", "c"))
    assert capacity.wait_for_capacity(WORKERS, never_stop) == 3
    assert cluster.requests == [4 + 2] * 4
    capacity.clear_resource_request()
    assert cluster.requests[-1] == 0


def test_a_cluster_that_is_too_small_is_refused_except_to_a_run_that_had_workers_there(cluster) -> None:
    cluster.total = nodes("a")
    with pytest.raises(ConfigError, match=r"cluster\.workers: 2 workers need 2 GPUs, found 1"):
        capacity.check_capacity(WORKERS, resumes=False)
    capacity.check_capacity(WORKERS, resumes=True)
    cluster.limits = {"GPU": 4.0}
    capacity.check_capacity(WORKERS, resumes=False)


@pytest.mark.parametrize(("demand", "reason"), [(1, "other jobs hold the resources"), (9, "the nodes have too few resources")])
def test_tasks_that_have_to_wait_for_resources_are_logged_and_then_start(cluster, caplog, demand: int, reason: str) -> None:
    cluster.total, cluster.free = {"a": {"CPU": 2}, "b": {"CPU": 2}}, {"a": {"CPU": 0.5}, "b": {"CPU": 0.5}}
    cluster.events[45.0] = lambda: cluster.free.update(b={"CPU": float(demand)})
    capacity.wait_for_resources({"CPU": demand, "GPU": 0}, "pack")
    assert 45 <= cluster.now < 46
    expected = f"event=waiting_for_nodes purpose='pack' needs='{demand} CPU' reason='{reason}' waited_s="
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2 and all(line.startswith(expected) for line in lines), "after 8 s, and then every 30 s"


def test_tasks_do_not_wait_where_an_autoscaler_starts_nodes_for_them(cluster) -> None:
    cluster.limits = {"CPU": 8.0}
    capacity.wait_for_resources({"CPU": 1}, "pack")
    assert cluster.now == 0

"""Room for workers on a cluster that is only played: how many start, how long is waited, and what an autoscaler is asked for."""

from types import SimpleNamespace

import pytest

from yolor_ray.cluster import capacity
from yolor_ray.cluster.stop_signal import never_stop
from yolor_ray.config import ClusterConfig
from yolor_ray.errors import ConfigError, TrainingError

WORKERS = ClusterConfig(workers="2-4", gpu=True)


@pytest.fixture
def cluster(monkeypatch) -> SimpleNamespace:
    """A cluster of nodes with one GPU each: `free` and `whole` by node; time passes only while one waits for it."""
    played = SimpleNamespace(free={}, whole={}, draining={}, most=None, asked=[], now=0.0, later={})

    def sleep(seconds: float) -> None:
        played.now += seconds
        for at in [at for at in played.later if at <= played.now]:
            played.later.pop(at)()

    state = SimpleNamespace(
        available_resources_per_node=lambda: played.free,
        total_resources_per_node=lambda: played.whole,
        state=SimpleNamespace(get_draining_nodes=lambda: played.draining, get_max_resources_from_cluster_config=lambda: played.most),
    )
    monkeypatch.setattr(capacity, "state", state)
    monkeypatch.setattr(capacity.ray, "nodes", lambda: [{"NodeID": node, "Alive": True} for node in played.whole])
    monkeypatch.setattr(capacity.ray, "cluster_resources", lambda: {"GPU": float(len(played.whole))})
    monkeypatch.setattr(capacity, "request_resources", lambda bundles: played.asked.append(len(bundles)))
    monkeypatch.setattr(capacity, "time", SimpleNamespace(monotonic=lambda: played.now, sleep=sleep))
    return played


def nodes(*names: str) -> dict[str, dict[str, float]]:
    return {name: {"GPU": 1.0} for name in names}


def test_all_the_room_is_taken_at_once_up_to_the_most(cluster) -> None:
    cluster.free = cluster.whole = nodes(*"abcdef")
    assert capacity.wait_for_capacity(WORKERS, never_stop) == 4
    assert cluster.now == 0


def test_what_a_lost_life_held_is_waited_for_a_little_while(cluster) -> None:
    cluster.whole, cluster.free = nodes(*"abc"), nodes("a", "b")
    assert capacity.wait_for_capacity(WORKERS, never_stop) == 2
    assert capacity.SETTLE_S < cluster.now < capacity.SETTLE_S + 2


def test_a_node_that_is_about_to_leave_has_no_room(cluster) -> None:
    cluster.free = cluster.whole = nodes(*"abc")
    cluster.draining = {"a": {}}
    assert capacity.wait_for_capacity(WORKERS, never_stop) == 2


def test_room_for_the_fewest_is_waited_for_and_given_up_after_a_long_time(cluster) -> None:
    cluster.free = cluster.whole = nodes("a")
    cluster.later[100.0] = lambda: cluster.whole.update(nodes("b"))
    assert capacity.wait_for_capacity(WORKERS, never_stop) == 2
    assert 100 <= cluster.now < 101
    cluster.whole.pop("b")
    with pytest.raises(TrainingError, match=r"found room for 1 workers for 1800 s, expected 2; the same command goes on"):
        capacity.wait_for_capacity(WORKERS, never_stop)


def test_a_notice_ends_the_wait(cluster) -> None:
    cluster.later[50.0] = lambda: cluster.asked.append("heard")
    assert capacity.wait_for_capacity(WORKERS, lambda: "SIGTERM" if cluster.asked else "") == 0
    assert cluster.now == 50


def test_an_autoscaler_is_asked_for_what_is_wanted_beside_what_others_hold_and_again_while_none_comes(cluster) -> None:
    cluster.most, cluster.whole, cluster.free = {"GPU": 8.0}, nodes(*"abc"), nodes("a")
    cluster.later[70.0] = lambda: cluster.free.update(nodes("b", "c"))
    assert capacity.wait_for_capacity(WORKERS, never_stop) == 3
    assert cluster.asked == [4 + 2] * 3
    capacity.clear_resource_request()
    assert cluster.asked[-1] == 0


def test_a_cluster_that_is_too_small_for_ever_is_refused_but_to_a_run_that_fitted_it_once(cluster) -> None:
    cluster.whole = nodes("a")
    with pytest.raises(ConfigError, match=r"cluster\.workers: 2 workers and reading need 2 GPUs, found 1"):
        capacity.check_capacity(WORKERS, begun=False)
    capacity.check_capacity(WORKERS, begun=True)
    cluster.most = {"GPU": 4.0}
    capacity.check_capacity(WORKERS, begun=False)

"""Capacity for more workers on a simulated cluster: the time at which an attempt stops to scale up."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import ray

from yolor_ray.cluster.stop_signal import never_stop
from yolor_ray.config import ClusterConfig
from yolor_ray.train.elastic import monitor
from yolor_ray.train.elastic.monitor import ClusterMonitor, RemoteStopSignal, StopSignalActor, WorkerPlace


@pytest.fixture
def reason_at(monkeypatch, request) -> Callable[[float, int], str]:
    """Return the reason to scale up two workers of two to four, `reason_at(second, schedulable_workers)`.

    The parameter is the number of earlier scale-ups.
    """
    clock, schedulable = [0.0], [0]
    monkeypatch.setattr(monitor.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(monitor, "schedulable_workers", lambda cluster: schedulable[0])
    cluster_monitor = ClusterMonitor(None, ClusterConfig(workers="2-4"), 2, never_stop, getattr(request, "param", 0))

    def reason(second: float, workers: int) -> str:
        clock[0], schedulable[0] = second, workers
        return cluster_monitor._scale_up_reason()

    return reason


def test_stable_capacity_is_used(reason_at: Callable[[float, int], str]) -> None:
    assert [reason_at(second, 0) for second in (1, 40)] == ["", ""]
    assert [reason_at(second, 1) for second in (41, 45, 49)] == ["", "", ""]
    assert reason_at(50, 5) == "capacity for 4 workers"


def test_flapping_capacity_is_not_used(reason_at: Callable[[float, int], str]) -> None:
    assert not any(reason_at(second, second % 8 > 0) for second in range(1, 200))


def test_a_young_attempt_does_not_scale_up(reason_at: Callable[[float, int], str]) -> None:
    assert not any(reason_at(second, 2) for second in range(1, 30))
    assert reason_at(30, 2) == "capacity for 4 workers"


@pytest.mark.parametrize(("reason_at", "delay_s"), [(1, 60), (2, 120), (4, 480), (5, 480), (99, 480)], indirect=["reason_at"])
def test_each_scale_up_doubles_the_delay_before_the_next(reason_at: Callable[[float, int], str], delay_s: int) -> None:
    assert not any(reason_at(second, 2) for second in range(1, delay_s))
    assert reason_at(delay_s, 2) == "capacity for 4 workers"


class LocalActor:
    """A stop-signal actor in a thread of this process: methods have `remote`, and `get` waits for the answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._actor = StopSignalActor()
        monkeypatch.setattr(monitor.ray, "get", lambda answer, timeout=5: answer.result(timeout))

    def __getattr__(self, name: str) -> SimpleNamespace:
        async def call(*arguments: object) -> object:
            answer = getattr(self._actor, name)(*arguments)
            return await answer if asyncio.iscoroutine(answer) else answer

        return SimpleNamespace(remote=lambda *arguments: asyncio.run_coroutine_threadsafe(call(*arguments), self._loop))

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def stop_actor(monkeypatch) -> Iterator[LocalActor]:
    actor = LocalActor(monkeypatch)
    yield actor
    actor.close()


def test_a_stop_signal_reaches_rank_0_in_far_less_than_the_3_s_of_ray_job_stop(monkeypatch, stop_actor: LocalActor) -> None:
    """Also while rank 0 computes, and while the monitor waits for its next look at the cluster."""
    received = [""]
    monkeypatch.setattr(monitor, "draining_nodes", set)
    monkeypatch.setattr(monitor, "schedulable_workers", lambda cluster: 0)
    remote_signal = RemoteStopSignal(stop_actor)
    with ClusterMonitor(stop_actor, ClusterConfig(workers="2"), 2, lambda: received[0], 0):
        assert remote_signal() == ""
        time.sleep(0.3)
        assert remote_signal() == ""
        received[0], started_at = "SIGTERM", time.monotonic()
        remote_signal._thread.join(5)
    assert remote_signal() == "SIGTERM" and time.monotonic() - started_at < 0.8


def test_an_actor_that_ray_restarts_hides_no_node_and_no_placement_group(monkeypatch) -> None:
    """Ray kills the actor beside the workers when memory is full; restarted, it has forgotten their places."""
    group, removed = SimpleNamespace(id="g"), []
    answers = [{0: WorkerPlace("a1", group), 1: WorkerPlace("b2", group)}, None, {}]

    def get(_: object, timeout: float) -> dict[int, WorkerPlace]:
        """Answer as Ray does: not within the timeout while the actor restarts."""
        answer = answers.pop(0)
        if answer is None:
            raise ray.exceptions.GetTimeoutError(f"no answer after {timeout} s")
        return answer

    monkeypatch.setattr(monitor.ray, "get", get)
    monkeypatch.setattr(monitor, "draining_nodes", lambda: set() if answers else {"b2"})
    monkeypatch.setattr(monitor, "remove_placement_group", removed.append)
    actor = SimpleNamespace(places=SimpleNamespace(remote=lambda: None))
    cluster_monitor = ClusterMonitor(actor, ClusterConfig(workers="2"), 2, never_stop, 0)
    assert cluster_monitor._drain_reason() == ""
    with pytest.raises(ray.exceptions.GetTimeoutError, match=r"after 10\.0 s"):
        cluster_monitor._drain_reason()
    assert cluster_monitor._drain_reason() == "node b2 is being drained"
    assert cluster_monitor.nodes == {0: "a1", 1: "b2"}
    cluster_monitor.free_resources()
    assert removed == [group]


def test_a_worker_without_a_driver_polls_no_more(monkeypatch, caplog) -> None:
    def fail(_: object) -> str:
        raise ray.exceptions.ActorDiedError()

    monkeypatch.setattr(monitor.ray, "get", fail)
    stop_signal = RemoteStopSignal(SimpleNamespace(wait=SimpleNamespace(remote=lambda: None)))
    stop_signal()
    stop_signal._thread.join(5)
    assert not stop_signal._thread.is_alive() and "event=stop_signal_unreachable" in caplog.text

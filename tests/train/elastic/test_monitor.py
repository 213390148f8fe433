"""Capacity for more workers on a simulated cluster: the time at which an attempt stops to scale up."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import ray

from yolor_ray.cluster.stop_signal import never_stop
from yolor_ray.config import ClusterConfig
from yolor_ray.train.elastic import monitor
from yolor_ray.train.elastic.monitor import ClusterMonitor, RemoteStopSignal


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


def test_a_stop_signal_arrives_while_a_worker_computes(monkeypatch) -> None:
    answers = ["", "", "SIGTERM"]
    monkeypatch.setattr(monitor.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(monitor.ray, "get", lambda answer: answer)
    stop_signal = RemoteStopSignal(SimpleNamespace(reason=SimpleNamespace(remote=lambda: answers.pop(0))))
    stop_signal()
    stop_signal._thread.join(5)
    assert stop_signal() == "SIGTERM" and answers == []


def test_a_worker_without_a_driver_polls_no_more(monkeypatch, caplog) -> None:
    def fail(_: object) -> str:
        raise ray.exceptions.ActorDiedError()

    monkeypatch.setattr(monitor.ray, "get", fail)
    stop_signal = RemoteStopSignal(SimpleNamespace(reason=SimpleNamespace(remote=lambda: None)))
    stop_signal()
    stop_signal._thread.join(5)
    assert not stop_signal._thread.is_alive() and "event=stop_signal_unreachable" in caplog.text

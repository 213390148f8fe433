"""Room for more workers, on a cluster that is only played: when a life makes way for a larger one."""

import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import ray

from yolor_ray.cluster.stop_signal import never_stop
from yolor_ray.config import ClusterConfig
from yolor_ray.train.elastic import monitor
from yolor_ray.train.elastic.monitor import ClusterMonitor, RemoteStopSignal


@pytest.fixture
def at(monkeypatch, request) -> Callable[[float, int], str]:
    """Return what a watch over two workers of two to four says at a time with such free room; the parameter is how often it has scale_ups."""
    clock, free = [0.0], [0]
    monkeypatch.setattr(monitor.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(monitor, "room", lambda cluster: free[0])
    looking = ClusterMonitor(None, ClusterConfig(workers="2-4"), 2, never_stop, getattr(request, "param", 0))

    def look(second: float, room: int) -> str:
        clock[0], free[0] = second, room
        return looking._scale_up_reason()

    return look


def test_room_that_stays_is_used(at: Callable[[float, int], str]) -> None:
    assert [at(second, 0) for second in (1, 40)] == ["", ""]
    assert [at(second, 1) for second in (41, 45, 49)] == ["", "", ""]
    assert at(50, 5) == "there is room for 4 workers"


def test_room_that_comes_and_goes_is_not(at: Callable[[float, int], str]) -> None:
    assert not any(at(second, second % 8 > 0) for second in range(1, 200))


def test_a_young_life_goes_on_a_while(at: Callable[[float, int], str]) -> None:
    assert not any(at(second, 2) for second in range(1, 30))
    assert at(30, 2) == "there is room for 4 workers"


@pytest.mark.parametrize(("at", "least_s"), [(1, 60), (2, 120), (4, 480), (5, 480), (99, 480)], indirect=["at"])
def test_a_run_that_grows_again_and_again_waits_longer_each_time(at: Callable[[float, int], str], least_s: int) -> None:
    assert not any(at(second, 2) for second in range(1, least_s))
    assert at(least_s, 2) == "there is room for 4 workers"


def test_a_notice_is_heard_while_a_worker_computes(monkeypatch) -> None:
    answers = ["", "", "SIGTERM"]
    monkeypatch.setattr(monitor, "ASK_EVERY_S", 0.01)
    monkeypatch.setattr(monitor.ray, "get", lambda answer: answer)
    notice = RemoteStopSignal(SimpleNamespace(reason=SimpleNamespace(remote=lambda: answers.pop(0))))
    assert notice() == ""
    time.sleep(0.5)
    assert notice() == "SIGTERM"


def test_a_worker_whose_driver_is_gone_asks_no_more(monkeypatch, caplog) -> None:
    def gone(_: object) -> str:
        raise ray.exceptions.ActorDiedError()

    monkeypatch.setattr(monitor.ray, "get", gone)
    notice = RemoteStopSignal(SimpleNamespace(reason=SimpleNamespace(remote=lambda: None)))
    notice()
    notice._asking.join(5)
    assert not notice._asking.is_alive() and "event=stop_signal_unreachable" in caplog.text

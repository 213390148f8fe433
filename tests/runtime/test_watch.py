"""Room for more workers, on a cluster that is only played: when a life makes way for a larger one."""

from collections.abc import Callable

import pytest

from yolor_ray.config import Cluster
from yolor_ray.runtime import watch
from yolor_ray.runtime.notice import no_notice
from yolor_ray.runtime.watch import Watch


@pytest.fixture
def at(monkeypatch) -> Callable[[float, int], str]:
    """Return what a watch over two workers of two to four says at a time with so much free room."""
    clock, free = [0.0], [0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(watch, "room", lambda cluster: free[0])
    looking = Watch(None, Cluster(workers="2-4"), 2, no_notice)

    def look(second: float, room: int) -> str:
        clock[0], free[0] = second, room
        return looking._coming()

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

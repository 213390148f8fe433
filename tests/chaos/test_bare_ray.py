"""Memory that Ray's own processes keep of each worker process, on a Ray without the project: the reason of `soak_usage.AGENT_KEPT_MB`."""

import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from soak_usage import AGENT_KEPT_MB, NODE_DAEMONS, role_of

pytestmark = [pytest.mark.chaos, pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning")]
FIRST, MEASURED = 50, 250
"""Worker processes before the first measurement, and between the two: Ray keeps more of the first ones."""


@pytest.fixture
def bare_ray() -> Iterator[None]:
    import ray

    ray.init(num_cpus=4, include_dashboard=True, logging_level="ERROR")
    yield
    ray.shutdown()


def memory_mb() -> dict[str, float]:
    """Return the memory of the daemons of this process's Ray by role (MB)."""
    time.sleep(5)
    daemons = {role_of(" ".join(process.cmdline())): process for process in psutil.Process().children(recursive=True)}
    return {role: daemons[role].memory_full_info().uss / 1e6 for role in NODE_DAEMONS}


@pytest.mark.usefixtures("bare_ray")
def test_the_allowance_of_a_soak_is_what_a_ray_without_the_project_keeps(add_report: Callable) -> None:
    import ray

    @ray.remote(num_cpus=0)
    class Short:
        def ping(self) -> None: ...

    def start(count: int) -> None:
        for _ in range(count):
            actor = Short.remote()
            ray.get(actor.ping.remote())
            ray.kill(actor)

    start(FIRST)
    before = memory_mb()
    start(MEASURED)
    kept_mb = {role: (after - before[role]) / MEASURED for role, after in memory_mb().items()}
    listed = ", ".join(f"{role} {mb:.4f}" for role, mb in kept_mb.items())
    add_report([f"a Ray without the project keeps, MB of each of {MEASURED} worker processes: {listed}"])
    assert kept_mb["dashboard agent"] >= AGENT_KEPT_MB / 1.5, f"{listed}: the allowance is too large"

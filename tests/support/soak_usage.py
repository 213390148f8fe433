"""Memory, files and threads of a cluster's processes over time, and the slopes of these numbers with their intervals."""

import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from scipy import stats

from hosts import Host

ROLES = {
    "training driver": "jobs/train.py",
    "training controller": "ray::TrainController",
    "training worker": "ray::RayTrainWorker",
    "replica": "ray::ServeReplica",
    "Serve controller": "ray::ServeController",
    "proxy": "ray::HAProxyManager",
    "HAProxy": "bin/haproxy",
    "raylet": "raylet/raylet",
    "GCS": "gcs/gcs_server",
    "dashboard": "dashboard/dashboard.py",
    "dashboard agent": "ray::DashboardAgent",
    "runtime environment agent": "ray::RuntimeEnvAgent",
}
"""Part of the command line of each role's processes."""
MEASURES = ("memory, MB", "files", "threads", "threads of gRPC's pool")
"""The threads are those outside of gRPC's pool."""
NODE_DAEMONS = ("raylet", "GCS", "dashboard", "dashboard agent", "runtime environment agent")
"""Ray's own processes of a node, which run none of the project's code."""
DAEMON_MB = 10.0
"""Growth of a node daemon's memory per hour that counts as flat (MB).

A raylet keeps memory of each worker process and driver that has ended, most of it for the first hundred processes. The project cannot
change that, and a soak has some hundred worker processes on a node.
"""
AGENT_KEPT_MB = 0.15
"""Memory that a dashboard agent keeps of each worker process of trainings on its node (MB), also without the project: see
`test_bare_ray.py`."""
POOL_THREAD = "event_engine"
POOL_PER_HOUR = 5.0
"""Growth of gRPC's pool of threads per hour that counts as flat: every process of Ray has one, also GCS, which runs none of the project's
code, and starts a thread now and then."""
WORKER_LOGS = "ray/session_2*/logs/python-core-worker-*"
"""Files in the folder of a host: Ray writes one for each worker process."""
PERIOD_S = 10.0
WARM_UP_S = 180.0
"""First seconds of a process, which loads modules and fills caches, without an influence on slopes."""
MIN_SAMPLES = 6
"""Fewest samples of a process after its warm-up."""
MAX_CORRELATION = 0.95
FLAT_SHARE = 0.05
"""Growth per hour that counts as flat, as a share of the level."""
JUDGED_S = 1500.0
"""Shortest life of a process, after its warm-up, that says anything about growth (s): caches fill in the first minutes."""


@dataclass(frozen=True)
class Slope:
    """Mean of a number, and its change per hour with the limits of the 95 % interval."""

    seconds: float
    """Time from the first sample to the last one of the process that was measured longest."""
    mean: float
    per_hour: float
    low: float
    high: float
    allowed: float = 0.0
    """Change per hour that counts as flat, if it is more than FLAT_SHARE of the mean."""

    @property
    def is_flat(self) -> bool:
        """Return False if even the lower limit is more growth than counts as flat; a time under JUDGED_S shows no growth."""
        return self.seconds < JUDGED_S or self.low <= max(FLAT_SHARE * abs(self.mean), self.allowed)

    def __str__(self) -> str:
        judgement = f" (at most {self.seconds / 60:.0f} min, not judged)" if self.seconds < JUDGED_S else "" if self.is_flat else " GROWS"
        return f"{self.mean:.1f}: {self.per_hour:+.2f} [{self.low:+.2f}, {self.high:+.2f}]{judgement}"


def common_slope(series: Sequence[np.ndarray], allowed: float = 0.0) -> Slope | None:
    """Return the slope that series of (seconds, value) rows, (N, 2) each, have in common; None without enough samples.

    Each series has a level of its own: a process that replaces a killed one begins anew. Samples that follow each other resemble each
    other, so that the interval is widened by the correlation of neighbours.
    """
    series = [rows for rows in series if len(rows) >= MIN_SAMPLES]
    if not series:
        return None
    seconds, values = (np.concatenate([rows[:, column] - rows[:, column].mean() for rows in series]) for column in (0, 1))
    spread, mean = float((seconds**2).sum()), float(np.concatenate([rows[:, 1] for rows in series]).mean())
    slope = float((seconds * values).sum()) / spread
    errors = [rows[:, 1] - rows[:, 1].mean() - slope * (rows[:, 0] - rows[:, 0].mean()) for rows in series]
    total = sum(float((error**2).sum()) for error in errors)
    neighbours = sum(float((error[1:] * error[:-1]).sum()) for error in errors)
    correlation = min(max(neighbours / total, 0.0), MAX_CORRELATION) if total > 0 else 0.0
    independent = len(seconds) * (1 - correlation) / (1 + correlation)
    freedom = max(independent - len(series) - 1, 1.0)
    error = float(np.sqrt(total / spread / max(len(seconds) - len(series) - 1, 1) * (1 + correlation) / (1 - correlation)))
    half = float(stats.t.ppf(0.975, freedom)) * error
    longest_s = max(float(np.ptp(rows[:, 0])) for rows in series)
    return Slope(longest_s, mean, slope * 3600, (slope - half) * 3600, (slope + half) * 3600, allowed)


def role_of(command_line: str) -> str:
    """Return the role of a process; empty for others."""
    return next((role for role, words in ROLES.items() if re.search(words, command_line)), "")


def processes(hosts: Sequence[Host]) -> Iterator[tuple[str, psutil.Process]]:
    """Yield role and process of the processes of hosts that have a role."""
    namespaces = {Path(f"/proc/{host.init_pid}/ns/pid").readlink() for host in hosts}
    for process in psutil.process_iter():
        try:
            if Path(f"/proc/{process.pid}/ns/pid").readlink() in namespaces and (role := role_of(" ".join(process.cmdline()))):
                yield role, process
        except (OSError, psutil.Error):
            continue


def thread_names(pid: int) -> Counter[str]:
    """Return the number of threads of a process by name; raises OSError if the process, or one of them, ends meanwhile."""
    return Counter((thread / "comm").read_text().strip() for thread in Path(f"/proc/{pid}/task").iterdir())


class Usage:
    """Thread that measures the processes of hosts every PERIOD_S, `with Usage(hosts) as usage:`."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        self._hosts = hosts
        self._samples: dict[tuple[str, psutil.Process], list[tuple[float, ...]]] = defaultdict(list)
        self._threads: dict[tuple[str, psutil.Process], tuple[Counter[str], Counter[str]]] = {}
        """Names of the threads of each process, at its first and at its last sample."""
        self.counts: list[tuple[float, float]] = []
        """Time and number of the hosts' processes that have a role."""
        self._workers: list[tuple[float, int]] = []
        """Time and number of the worker processes that the hosts have started."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll)

    def __enter__(self) -> "Usage":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _poll(self) -> None:
        while not self._stop.wait(PERIOD_S):
            found = list(processes(self._hosts))
            self.counts.append((time.monotonic(), len(found)))
            started = sum(len(list(host.outside_path(host.folder).glob(WORKER_LOGS))) for host in self._hosts)
            self._workers.append((time.monotonic(), started))
            for role, process in found:
                try:
                    if time.time() - process.create_time() < WARM_UP_S:
                        continue
                    memory_mb = process.memory_full_info().uss / 1e6
                    names = thread_names(process.pid)
                    pool = names[POOL_THREAD]
                    row = (time.monotonic(), memory_mb, process.num_fds(), names.total() - pool, pool)
                except (OSError, psutil.Error):
                    continue
                self._samples[role, process].append(row)
                first, _ = self._threads.get((role, process), (names, names))
                self._threads[role, process] = first, names

    def new_threads(self, role: str) -> Counter[str]:
        """Return the names of the threads that the processes of a role have started, and not ended, after their warm-up."""
        pairs = [pair for (found, _), pair in self._threads.items() if found == role]
        return sum((last - first for first, last in pairs), Counter())

    def slope(self, role: str, measure: int) -> Slope | None:
        """Return the slope of a measure, by its number in MEASURES, over the processes of a role."""
        series = [np.array(rows) for (found, _), rows in self._samples.items() if found == role]
        kept_mb = AGENT_KEPT_MB * self.workers_per_hour() if role == "dashboard agent" else 0.0
        memory_mb = max(DAEMON_MB if role in NODE_DAEMONS else 0.0, kept_mb)
        allowed = (memory_mb, 0.0, 0.0, POOL_PER_HOUR)[measure]
        return common_slope([rows[:, [0, 1 + measure]] for rows in series], allowed)

    def workers_per_hour(self) -> float:
        """Return the worker processes that a node has started per hour, as a mean of the nodes."""
        (first_s, before), (last_s, after) = self._workers[0], self._workers[-1]
        return (after - before) / (last_s - first_s) * 3600 / len(self._hosts) if last_s > first_s else 0.0

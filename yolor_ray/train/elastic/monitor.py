"""Monitor the cluster from the driver; request checkpoint-and-stop when a node drains or more workers fit.

The driver sends the request to an actor on its own node, which answers rank 0 as soon as the request is there. `ray job stop` kills a job
3 s after its signal, by default.
"""

import asyncio
import logging
import threading
import time
from typing import Any, NamedTuple

import ray
import ray.exceptions
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from yolor_ray.cluster.capacity import draining_nodes, schedulable_workers
from yolor_ray.cluster.stop_signal import StopSignal
from yolor_ray.config import ClusterConfig

logger = logging.getLogger(__name__)

SIGNAL_POLL_S = 0.1
"""Time between two looks at the stop signal (s)."""
POLL_S = 1.0
"""Time between two looks at the cluster (s)."""
ACTOR_TIMEOUT_S = 10.0
"""Longest wait for an answer of the stop-signal actor (s): while its node has no memory to restart it, Ray repeats a call without end."""
SCALE_UP_DELAY_S = 30.0
"""Minimum attempt duration before scaling up (s); batches nodes that join together."""
MAX_DELAY_DOUBLINGS = 4
"""Doublings of that delay, one per earlier scale-up (back-off on flapping capacity)."""
STABLE_CAPACITY_S = 10.0
"""Time that capacity for more workers must stay free before scaling up (s): other jobs' capacity comes and goes."""


class WorkerPlace(NamedTuple):
    """Id of a worker's node, and the placement group of its attempt."""

    node: str
    group: PlacementGroup | None


class StopSignalActor:
    """Places of an attempt's workers, or the stopped trials of a study, and the reason to stop; an actor on the driver's node."""

    def __init__(self) -> None:
        self._places: dict[int, WorkerPlace] = {}
        self._reason = ""
        self._stopped = asyncio.Event()
        self._stopped_trials: set[str] = set()

    def join(self, rank: int, place: WorkerPlace) -> None:
        """Add the place of a worker."""
        self._places[rank] = place

    def places(self) -> dict[int, WorkerPlace]:
        """Return the place of each worker by rank."""
        return self._places

    def add_stopped_trial(self, name: str) -> None:
        """Add a trial that has stopped after a checkpoint."""
        self._stopped_trials.add(name)

    def stopped_trials(self) -> set[str]:
        """Return the names of the trials that have stopped after a checkpoint."""
        return self._stopped_trials

    def stop(self, reason: str) -> None:
        """Request the end of the attempt or the study; the first reason counts."""
        self._reason = self._reason or reason
        self._stopped.set()

    async def wait(self) -> str:
        """Wait for the request to end the attempt or the study, and return its reason."""
        await self._stopped.wait()
        return self._reason

    def reason(self) -> str:
        """Return the reason to stop; empty while the attempt or the study may continue."""
        return self._reason


def start_stop_signal_actor() -> Any:
    """Start the actor of one attempt, or of one study, on this node and return its handle.

    Ray restarts the actor, and repeats calls, if its process is killed, for example for memory: without the actor, no signal would arrive.
    """
    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(StopSignalActor)
    return actor.options(scheduling_strategy=this_node).remote()


class RemoteStopSignal:
    """Stop signal of rank 0 or of a trial: the answer of the stop-signal actor, read without waiting for the actor."""

    def __init__(self, stop_actor: Any) -> None:
        self._stop_actor, self._reason = stop_actor, ""
        self._thread: threading.Thread | None = None

    def __call__(self) -> str:
        """Return the reason to stop training; empty while training may continue."""
        # A thread waits for the actor, because the next call may come after an update of many seconds.
        if self._thread is None:
            self._thread = threading.Thread(target=self._wait, name="yolor-stop-signal", daemon=True)
            self._thread.start()
        return self._reason

    def _wait(self) -> None:
        try:
            self._reason = ray.get(self._stop_actor.wait.remote())
        except ray.exceptions.RayError as error:
            # The actor died with the driver, and Ray is about to end this worker, too.
            logger.warning("event=stop_signal_unreachable error='%s'", error)


class ClusterMonitor:
    """Thread of the driver that watches the cluster during an attempt and stops the attempt where the cluster changes."""

    def __init__(self, stop_actor: Any, cluster: ClusterConfig, workers: int, stop_signal: StopSignal, scale_ups: int) -> None:
        """Monitor an attempt of so many workers; `scale_ups` counts the earlier attempts of this job that ended with `scales_up`."""
        self._stop_actor, self._cluster, self._workers, self._stop_signal = stop_actor, cluster, workers, stop_signal
        self._scale_up_delay_s = SCALE_UP_DELAY_S * 2 ** min(scale_ups, MAX_DELAY_DOUBLINGS)
        self.scales_up = False
        """True if the attempt stops in order to restart with more workers."""
        self._places: dict[int, WorkerPlace] = {}
        """Places of the workers, also of those that the actor has forgotten, because Ray restarted it."""
        self._started_at = time.monotonic()
        self._last_full_at = self._started_at
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="yolor-monitor", daemon=True)

    def __enter__(self) -> "ClusterMonitor":
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the thread."""
        self._stop.set()
        self._thread.join()

    @property
    def nodes(self) -> dict[int, str]:
        """Id of each worker's node by rank."""
        return {rank: place.node for rank, place in self._places.items()}

    def free_resources(self) -> None:
        """Free the resources of the workers of the ended attempt.

        Ray Train does so itself, unless Ray killed its controller and the actor that cleans up after the controller, as Ray does when
        memory is full. Then the next attempt would wait for the resources of the one before it, until the job ends.
        """
        for group in {place.group.id: place.group for place in self._places.values() if place.group}.values():
            remove_placement_group(group)

    def _poll(self) -> None:
        looked_at = 0.0
        while not self._stop.wait(SIGNAL_POLL_S):
            try:
                reason = self._stop_signal()
                if not reason and time.monotonic() - looked_at >= POLL_S:
                    looked_at = time.monotonic()
                    reason = self._drain_reason() or self._scale_up_reason()
                if reason:
                    ray.get(self._stop_actor.stop.remote(reason), timeout=ACTOR_TIMEOUT_S)
                    logger.info("event=stop_requested reason='%s'", reason)
                    return
            except ray.exceptions.RayError as error:
                logger.warning("event=monitor_failed error='%s'", error)

    def _drain_reason(self) -> str:
        """Return the reason to stop if a worker's node is being drained, as before a spot machine is taken back; else empty."""
        self._places |= ray.get(self._stop_actor.places.remote(), timeout=ACTOR_TIMEOUT_S)
        leaving = draining_nodes() & set(self.nodes.values())
        return f"node {sorted(leaving)[0][:12]} is being drained" if leaving else ""

    def _scale_up_reason(self) -> str:
        """Return the reason to stop if more workers have fitted for STABLE_CAPACITY_S; else empty."""
        now, max_workers = time.monotonic(), self._cluster.worker_range[1]
        more = min(schedulable_workers(self._cluster), max_workers - self._workers)
        if more <= 0:
            self._last_full_at = now
        if now - self._last_full_at < STABLE_CAPACITY_S or now - self._started_at < self._scale_up_delay_s:
            return ""
        self.scales_up = True
        return f"capacity for {self._workers + more} workers"

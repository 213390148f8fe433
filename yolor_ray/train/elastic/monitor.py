"""Watch over a life from outside of it: ask it to end after a checkpoint when a node is about to leave or another one has come.

The driver watches and asks; an actor beside it passes the word on to the leading worker, which looks there once a second.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from yolor_ray.cluster.capacity import draining_nodes, schedulable_workers
from yolor_ray.cluster.stop_signal import StopSignal
from yolor_ray.config import ClusterConfig

logger = logging.getLogger(__name__)

POLL_EVERY_S = 1.0
SCALE_UP_DELAY_S = 30.0
"""Seconds that a life lasts at least before it makes way for one with more workers, so that nodes that come together count together."""
MAX_DELAY_DOUBLINGS = 4
"""How often that is doubled, once for each growth before: where nodes come and go, a run is to train more than it starts."""
STABLE_CAPACITY_S = 10.0
"""Seconds that room for more workers stays free before it counts: on a cluster with other jobs some comes and goes."""


class StopSignalActor:
    """Hold what workers and driver tell each other; runs as an actor on the driver's node."""

    def __init__(self) -> None:
        self._nodes: set[str] = set()
        self._reason = ""

    def join(self, node: str) -> None:
        """Note that a worker is on this node."""
        self._nodes.add(node)

    def nodes(self) -> set[str]:
        """Return the nodes that have workers."""
        return self._nodes

    def ask(self, reason: str) -> None:
        """Ask the life to end; the first reason counts."""
        self._reason = self._reason or reason

    def reason(self) -> str:
        """Return why the life is to end; empty while it may go on."""
        return self._reason


def start_stop_signal_actor() -> Any:
    """Return a new post on this node, for one life."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(StopSignalActor).options(scheduling_strategy=here).remote()


class RemoteStopSignal:
    """Be the notice of a leading worker: what the post said last, without waiting for it."""

    def __init__(self, post: Any) -> None:
        self._post, self._reason = post, ""
        self._asking: threading.Thread | None = None

    def __call__(self) -> str:
        """Return why training is to end; empty while it may go on."""
        # In a thread, as the next question may be an update of many seconds away.
        if self._asking is None:
            self._asking = threading.Thread(target=self._poll, name="yolor-notice", daemon=True)
            self._asking.start()
        return self._reason

    def _poll(self) -> None:
        while not self._reason:
            try:
                self._reason = ray.get(self._post.reason.remote())
            except ray.exceptions.RayError as error:
                # The driver took its post along; Ray is about to end this worker, too.
                logger.warning("event=stop_signal_unreachable error='%s'", error)
                return
            time.sleep(POLL_EVERY_S)


class ClusterMonitor:
    """Look at the cluster while a life trains, in a thread of the driver."""

    def __init__(self, post: Any, cluster: ClusterConfig, workers: int, sigterm: StopSignal, scale_ups: int) -> None:
        """Watch over a life of so many workers; `scale_ups` is how often lives of this job have made way for larger ones before."""
        self._post, self._cluster, self._workers, self._sigterm = post, cluster, workers, sigterm
        self._grow_after_s = SCALE_UP_DELAY_S * 2 ** min(scale_ups, MAX_DELAY_DOUBLINGS)
        self.scales_up = False
        """Whether the life makes way for one with more workers."""
        self._began = time.monotonic()
        self._full = self._began
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="yolor-watch", daemon=True)

    def __enter__(self) -> "ClusterMonitor":
        """Begin to watch."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._stop.set()
        self._thread.join()

    def _poll(self) -> None:
        reasons: tuple[Callable[[], str], ...] = (self._sigterm, self._drain_reason, self._scale_up_reason)
        while not self._stop.wait(POLL_EVERY_S):
            try:
                reason = next((found for look in reasons if (found := look())), "")
                if reason:
                    ray.get(self._post.ask.remote(reason))
                    logger.info("event=stop_requested reason='%s'", reason)
                    return
            except ray.exceptions.RayError as error:
                logger.warning("event=watch_failed error='%s'", error)

    def _drain_reason(self) -> str:
        """Say so when a node with a worker is being drained, as before a spot machine is taken away."""
        leaving = draining_nodes() & ray.get(self._post.nodes.remote())
        return f"node {sorted(leaving)[0][:12]} is about to leave" if leaving else ""

    def _scale_up_reason(self) -> str:
        """Say so when there has been room for more workers for a while."""
        now, most = time.monotonic(), self._cluster.worker_range[1]
        more = min(schedulable_workers(self._cluster), most - self._workers)
        if more <= 0:
            self._full = now
        if now - self._full < STABLE_CAPACITY_S or now - self._began < self._grow_after_s:
            return ""
        self.scales_up = True
        return f"there is room for {self._workers + more} workers"

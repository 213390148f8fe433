"""Count the workers that a cluster has room for, and wait until there are enough."""

import logging
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray._private import state
from ray.autoscaler.sdk import request_resources

from yolor_ray.cluster.stop_signal import StopSignal
from yolor_ray.config import ClusterConfig
from yolor_ray.errors import ConfigError, TrainingError

logger = logging.getLogger(__name__)

READER_CPUS = 0.5
"""Logical CPUs that reading needs beside the workers."""
SETTLE_S = 8.0
"""Seconds that a lost life's resources may take to come back before fewer workers start."""
CAPACITY_TIMEOUT_S = 1800.0
"""Seconds without room for the fewest workers after which a run gives up."""
LOG_EVERY_S = 30.0
POLL_S = 0.5


def worker_resources(cluster: ClusterConfig) -> dict[str, float]:
    """Return the logical resources of one worker."""
    return {"GPU": 1.0} if cluster.gpu else {"CPU": cluster.cpus_per_worker}


def draining_nodes() -> set[str]:
    """Return the ids of nodes that are about to leave."""
    return set(state.state.get_draining_nodes() or {})


def schedulable_workers(cluster: ClusterConfig) -> int:
    """Return how many workers fit into what is free on the nodes that stay."""
    return _count_workers(cluster, state.available_resources_per_node())


def _total_workers(cluster: ClusterConfig) -> int:
    """Return how many would fit if nothing else ran there."""
    return _count_workers(cluster, state.total_resources_per_node())


def _count_workers(cluster: ClusterConfig, nodes: Mapping[str, Mapping[str, float]]) -> int:
    leaving = draining_nodes()
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]} - leaving
    free = [resources for node, resources in nodes.items() if node in alive]
    places = sum(count_fitting(resources, worker_resources(cluster)) for resources in free)
    if cluster.gpu or cluster.cpus_per_worker == 0:
        return places
    cpus = sum(resources.get("CPU", 0) for resources in free)
    return min(places, count_fitting({"CPU": cpus - READER_CPUS}, worker_resources(cluster)))


def count_fitting(resources: Mapping[str, float], each: Mapping[str, float]) -> int:
    """Return how often a demand fits into resources."""
    return min((int(max(resources.get(kind, 0), 0) / amount + 1e-9) for kind, amount in each.items() if amount > 0), default=10**6)


def wait_for_capacity(cluster: ClusterConfig, notice: StopSignal) -> int:
    """Return how many workers to start: all there is room for, between the fewest and the most; 0 if the notice ends the wait.

    An autoscaler is asked for nodes meanwhile.

    Raises:
        TrainingError: no room came for half an hour.

    """
    fewest, most = cluster.worker_range
    began = told = time.monotonic()
    _request_nodes(cluster)
    while not notice():
        found, waited = schedulable_workers(cluster), time.monotonic() - began
        hoped = min(most, max(_total_workers(cluster), fewest))
        if found >= hoped or (found >= fewest and waited > SETTLE_S):
            return min(found, most)
        if waited > CAPACITY_TIMEOUT_S:
            raise TrainingError(
                f"cluster.workers: found room for {found} workers for {waited:.0f} s, expected {fewest}; the same command goes on"
            )
        if time.monotonic() - told > LOG_EVERY_S:
            told = time.monotonic()
            logger.warning("event=waiting_for_nodes room=%d fewest=%d waited_s=%.0f", found, fewest, waited)
            _request_nodes(cluster)
        time.sleep(POLL_S)
    return 0


def check_capacity(cluster: ClusterConfig, *, begun: bool) -> None:
    """Refuse a cluster that can never have room for the fewest workers: Ray would wait for ever.

    A run that has `begun` there had room for them once: it waits until lost nodes are back.

    Raises:
        ConfigError: it cannot.

    """
    fewest = cluster.worker_range[0]
    kind = "GPU" if cluster.gpu else "CPU"
    needed = fewest * worker_resources(cluster)[kind] + (0 if cluster.gpu else READER_CPUS)
    at_most: Any = state.state.get_max_resources_from_cluster_config()
    found = ray.cluster_resources().get(kind, 0) if at_most is None else at_most.get(kind, 0)
    if found < needed and not begun:
        raise ConfigError(f"cluster.workers: {fewest} workers and reading need {needed:g} {kind}s, found {found:g}")


def _request_nodes(cluster: ClusterConfig) -> None:
    """Ask the autoscaler, if there is one, for nodes for the most workers beside what is taken.

    It starts nodes for what is asked for, not for what would be nice to have; and it holds one request for all jobs, about all
    that there is to be.
    """
    if _autoscales():
        taken = max(_total_workers(cluster) - schedulable_workers(cluster), 0)
        request_resources(bundles=[worker_resources(cluster)] * (cluster.worker_range[1] + taken))


def clear_resource_request() -> None:
    """Ask the autoscaler, if there is one, for nothing any more; jobs that need nodes later ask again."""
    if _autoscales():
        request_resources(bundles=[])


def _autoscales() -> bool:
    return state.state.get_max_resources_from_cluster_config() is not None

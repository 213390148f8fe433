"""Count the workers that a cluster can schedule, and wait until the fewest of them fit."""

import logging
import time
from collections.abc import Mapping

import ray
from ray.autoscaler.sdk import request_resources

from yolor_ray.cluster.ray_internals import (
    available_resources_per_node,
    get_draining_nodes,
    get_max_resources_from_cluster_config,
    total_resources_per_node,
)
from yolor_ray.cluster.stop_signal import StopSignal
from yolor_ray.config import WorkersConfig
from yolor_ray.errors import CapacityError, ConfigError

logger = logging.getLogger(__name__)

SETTLE_S = 8.0
"""Longest wait for the resources of the previous attempt before fewer workers start (s)."""
CAPACITY_TIMEOUT_S = 1800.0
"""Longest wait for the fewest workers before a run gives up (s)."""
LOG_EVERY_S = 30.0
"""Time between two lines about a wait, of which the first comes after SETTLE_S (s)."""
POLL_S = 0.5
BUSY, SMALL = "other jobs hold the resources", "the nodes have too few resources"
"""Reasons of a wait."""


def worker_resources(cluster: WorkersConfig) -> dict[str, float]:
    """Return the logical resources of one worker."""
    return {"GPU": 1.0} if cluster.gpu else {"CPU": cluster.cpus_per_worker}


def draining_nodes() -> set[str]:
    """Return the ids of the nodes that are being drained."""
    return set(get_draining_nodes() or {})


def schedulable_workers(cluster: WorkersConfig) -> int:
    """Return the number of workers that fit into the free resources of the nodes that are not drained."""
    return _count_workers(cluster, available_resources_per_node())


def _total_workers(cluster: WorkersConfig) -> int:
    """Return the number of workers that would fit if the nodes ran nothing else."""
    return _count_workers(cluster, total_resources_per_node())


def _count_workers(cluster: WorkersConfig, resources_by_node: Mapping[str, Mapping[str, float]]) -> int:
    usable = {node["NodeID"] for node in ray.nodes() if node["Alive"]} - draining_nodes()
    nodes = [resources for node, resources in resources_by_node.items() if node in usable]
    return sum(count_fitting(resources, worker_resources(cluster)) for resources in nodes)


def count_fitting(resources: Mapping[str, float], demand: Mapping[str, float]) -> int:
    """Return the number of times that a demand fits into resources; 10^6 for an empty demand."""
    return min((int(max(resources.get(name, 0), 0) / amount + 1e-9) for name, amount in demand.items() if amount > 0), default=10**6)


def wait_for_capacity(cluster: WorkersConfig, stop_signal: StopSignal) -> int:
    """Wait until the fewest workers fit and return the number to start, at most the largest; 0 after a stop signal.

    While waiting, the function requests nodes from the autoscaler.

    Raises:
        CapacityError: the fewest workers did not fit for CAPACITY_TIMEOUT_S.

    """
    min_workers, max_workers = cluster.worker_range
    started_at = time.monotonic()
    logged_at = started_at + SETTLE_S - LOG_EVERY_S
    _request_nodes(cluster)
    while not stop_signal():
        schedulable, waited_s = schedulable_workers(cluster), time.monotonic() - started_at
        expected = min(max_workers, max(_total_workers(cluster), min_workers))
        if schedulable >= expected or (schedulable >= min_workers and waited_s > SETTLE_S):
            return min(schedulable, max_workers)
        if waited_s > CAPACITY_TIMEOUT_S:
            raise CapacityError(
                f"cluster.workers: found capacity for {schedulable} workers for {waited_s:.0f} s, expected {min_workers}; "
                "the same command resumes the run"
            )
        if time.monotonic() - logged_at > LOG_EVERY_S:
            logged_at = time.monotonic()
            _log_wait(cluster, schedulable, waited_s)
            _request_nodes(cluster)
        time.sleep(POLL_S)
    return 0


def _log_wait(cluster: WorkersConfig, schedulable: int, waited_s: float) -> None:
    """Log the resources that a run waits for, and whether other jobs hold them or nodes are missing."""
    min_workers = cluster.worker_range[0]
    [(resource, amount)] = worker_resources(cluster).items()
    reason = BUSY if _total_workers(cluster) >= min_workers else SMALL
    logger.warning(
        "event=waiting_for_nodes schedulable=%d min_workers=%d per_worker='%g %s' reason='%s' waited_s=%.0f gives_up_after_s=%.0f",
        *(schedulable, min_workers, amount, resource, reason, waited_s, CAPACITY_TIMEOUT_S),
    )


def wait_for_resources(demand: Mapping[str, float], purpose: str) -> None:
    """Wait until one node has these logical resources free, and log the wait; on a cluster with an autoscaler, return at once.

    Ray would let tasks wait without a word. `purpose` names them in the log.
    """
    started_at = time.monotonic()
    logged_at = started_at + SETTLE_S - LOG_EVERY_S
    while not _has_autoscaler() and not is_free(demand):
        if time.monotonic() - logged_at > LOG_EVERY_S:
            logged_at = time.monotonic()
            needed = " ".join(f"{amount:g} {name}" for name, amount in demand.items() if amount)
            reason = BUSY if _fits(total_resources_per_node(), demand) else SMALL
            logger.warning(
                "event=waiting_for_nodes purpose='%s' needs='%s' reason='%s' waited_s=%.0f",
                *(purpose, needed, reason, time.monotonic() - started_at),
            )
        time.sleep(POLL_S)


def is_free(demand: Mapping[str, float]) -> bool:
    """Return True if one node has these logical resources free."""
    return _fits(available_resources_per_node(), demand)


def _fits(resources_by_node: Mapping[str, Mapping[str, float]], demand: Mapping[str, float]) -> bool:
    return any(count_fitting(resources, demand) for resources in resources_by_node.values())


def check_capacity(cluster: WorkersConfig, *, resumes: bool, reader_cpus: float = 0.0) -> None:
    """Refuse a cluster that can never schedule the fewest workers: Ray would wait for ever.

    Args:
        cluster: workers of the job.
        resumes: the run had its workers on the cluster before, so that it waits until lost nodes are back.
        reader_cpus: logical CPUs that tasks which read need beside workers without a GPU.

    Raises:
        ConfigError: the cluster is too small.

    """
    min_workers = cluster.worker_range[0]
    resource = "GPU" if cluster.gpu else "CPU"
    needed = min_workers * worker_resources(cluster)[resource] + (0 if cluster.gpu else reader_cpus)
    limits = get_max_resources_from_cluster_config()
    largest = ray.cluster_resources().get(resource, 0) if limits is None else limits.get(resource, 0)
    if largest < needed and not resumes:
        named = f"{min_workers} workers{' and reading' if reader_cpus else ''}"
        raise ConfigError(f"cluster.workers: {named} need {needed:g} {resource}s, found {largest:g}")


def _request_nodes(cluster: WorkersConfig) -> None:
    """Request the largest number of workers plus the resources in use from the autoscaler, if the cluster has one.

    `request_resources` replaces the previous request of the whole cluster, for all of its jobs.
    """
    if _has_autoscaler():
        workers_in_use = max(_total_workers(cluster) - schedulable_workers(cluster), 0)
        request_resources(bundles=[worker_resources(cluster)] * (cluster.worker_range[1] + workers_in_use))


def clear_resource_request() -> None:
    """Clear the request to the autoscaler, if the cluster has one; other jobs repeat theirs while they wait."""
    if _has_autoscaler():
        request_resources(bundles=[])


def _has_autoscaler() -> bool:
    return get_max_resources_from_cluster_config() is not None

"""Start or join Ray, with the process environment that workers need."""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import ray

from yolor_ray.cluster.access import check_access
from yolor_ray.cluster.environment import PROCESS_SETTINGS, WORKER_HOOK, local_ray_settings
from yolor_ray.cluster.ray_internals import JOB_CONFIG, VISIBLE_DEVICES_OVERRIDE, local_ray
from yolor_ray.errors import UserError

WORKER_ENVIRONMENT = {
    **PROCESS_SETTINGS,
    # Workers share the cores of their node. Without a limit each of them would start one OpenMP thread per core.
    "OMP_NUM_THREADS": "1",
    # Many S3-compatible stores reject the checksums that newer AWS libraries send with every request.
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
}
"""Environment variables of every worker. Credentials are absent, because Ray shows a runtime environment to every user. Local workers
inherit the credentials of this process; workers of a cluster have their own."""


def start_ray(log_to_driver: bool = False, cpus: int | None = None, dashboard: bool = False, allow_unauthenticated: bool = False) -> None:
    """Join the cluster that RAY_ADDRESS names, or start Ray on this machine; do nothing if Ray already runs.

    Args:
        log_to_driver: print the workers' output in this process too.
        cpus: logical CPUs of a Ray that is started on this machine; None takes the machine's.
        dashboard: start the dashboard of a local Ray, on loopback. Ray Train asks the dashboard whether workers are alive.
        allow_unauthenticated: log a warning about a cluster without authentication instead of refusing it.

    Raises:
        ConfigError: no cluster answers at RAY_ADDRESS, the cluster rejects this process's token, this process has no token, or
            the cluster has no authentication.

    """
    if ray.is_initialized():
        return
    options: dict[str, Any] = {
        "log_to_driver": log_to_driver,
        "logging_level": logging.WARNING,
        "runtime_env": {"env_vars": _environment(), **WORKER_HOOK},
    }
    address = os.environ.get("RAY_ADDRESS", "local")
    if address not in ("", "local"):
        check_access(address, allow_unauthenticated)
        ray.init(**options)
        return
    # Ray warns about the coming default for workers without a GPU until the first variable is set.
    for name, value in {VISIBLE_DEVICES_OVERRIDE: "0", **local_ray_settings()}.items():
        os.environ.setdefault(name, value)
    with local_ray():
        ray.init(address="local", num_cpus=cpus, include_dashboard=dashboard, **options)


def _environment() -> dict[str, str]:
    """Return WORKER_ENVIRONMENT without the variables that a submitted job sets: Ray refuses a variable that is set twice."""
    job = json.loads(os.environ.get(JOB_CONFIG) or "{}")
    set_by_job = (job.get("runtime_env") or {}).get("env_vars") or {}
    return {name: value for name, value in WORKER_ENVIRONMENT.items() if name not in set_by_job}


def as_completed(tasks: Sequence[ray.ObjectRef]) -> Iterator[Any]:
    """Yield the results of tasks in the order of completion; cancel the rest when the caller stops or a task fails.

    Raises:
        UserError: a task raised the error, which loses Ray's wrapping.

    """
    pending = list(tasks)
    try:
        while pending:
            ready, pending = ray.wait(pending)
            yield ray.get(ready[0])
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    finally:
        for task in pending:
            ray.cancel(task)

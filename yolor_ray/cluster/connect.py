"""Start or join Ray, quietly, with the process environment that workers need."""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import ray

from yolor_ray.cluster.access import check_access
from yolor_ray.cluster.environment import HIDE_SECRETS, KEEP_MEMORY
from yolor_ray.errors import UserError

WORKER_ENVIRONMENT = {
    **KEEP_MEMORY,
    "OMP_NUM_THREADS": "1",
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
}
"""Variables of every worker. Credentials are not among them, because Ray shows a runtime environment to whoever asks:
local workers inherit them, those of a cluster have their own."""


def start_ray(log_to_driver: bool = False, cpus: int | None = None, dashboard: bool = False, allow_unauthenticated: bool = False) -> None:
    """Join the cluster that RAY_ADDRESS names, or start Ray on this machine; does nothing when that is done already.

    Args:
        log_to_driver: show what workers print in this process too.
        cpus: logical CPUs of a Ray that is started here; None takes the machine's.
        dashboard: let a Ray that is started here have its dashboard, on loopback; Ray Train asks it whether workers live.
        allow_unauthenticated: join a cluster that asks nobody for a token with a warning instead of refusing it.

    Raises:
        ConfigError: no cluster answers at RAY_ADDRESS, it refuses this process's token or there is none, or it is open to everyone.

    """
    if ray.is_initialized():
        return
    options: dict[str, Any] = {
        "log_to_driver": log_to_driver,
        "logging_level": logging.WARNING,
        "runtime_env": {"env_vars": _environment(), **HIDE_SECRETS},
    }
    address = os.environ.get("RAY_ADDRESS", "local")
    if address not in ("", "local"):
        check_access(address, allow_unauthenticated)
        ray.init(**options)
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # On loopback alone: Ray would listen on the machine's first address for everyone.
    ray.init(address="local", _node_ip_address="127.0.0.1", num_cpus=cpus, include_dashboard=dashboard, **options)


def _environment() -> dict[str, str]:
    """Return the workers' variables but for those that a submitted job sets itself; Ray refuses to be told twice."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    set_by_job = (job.get("runtime_env") or {}).get("env_vars") or {}
    return {name: value for name, value in WORKER_ENVIRONMENT.items() if name not in set_by_job}


def as_they_finish(tasks: Sequence[ray.ObjectRef]) -> Iterator[Any]:
    """Yield the results of tasks in the order they finish; what is left is cancelled when the caller stops or one fails.

    Raises:
        UserError: the one that a task raised, without Ray's wrapping.

    """
    waiting = list(tasks)
    try:
        while waiting:
            ready, waiting = ray.wait(waiting)
            yield ray.get(ready[0])
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    finally:
        for task in waiting:
            ray.cancel(task)

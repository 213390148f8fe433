"""Start or join Ray, quietly, with the process environment that workers need."""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import ray
from ray._common.tls_utils import load_certs_from_env
from ray._private.grpc_utils import init_grpc_channel
from ray._private.ray_constants import GLOBAL_GRPC_OPTIONS
from ray._private.services import canonicalize_bootstrap_address

from yolor_ray.config.process import HIDE_SECRETS, KEEP_MEMORY
from yolor_ray.errors import ConfigError, UserError

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
"""What a cluster's head answers to anyone who may ask it anything, and to nobody else."""
WORKER_ENVIRONMENT = {
    **KEEP_MEMORY,
    "OMP_NUM_THREADS": "1",
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
}
"""Variables of every worker. Credentials are not among them, because Ray shows a runtime environment to whoever asks:
local workers inherit them, those of a cluster have their own."""


def start_ray(log_to_driver: bool = False, cpus: int | None = None, dashboard: bool = False, allow_open: bool = False) -> None:
    """Join the cluster that RAY_ADDRESS names, or start Ray on this machine; does nothing when that is done already.

    Args:
        log_to_driver: show what workers print in this process too.
        cpus: logical CPUs of a Ray that is started here; None takes the machine's.
        dashboard: let a Ray that is started here have its dashboard, on loopback; Ray Train asks it whether workers live.
        allow_open: join a cluster that asks nobody for a token with a warning instead of refusing it.

    Raises:
        ConfigError: no cluster answers at RAY_ADDRESS, it refuses this process's token, or it is open to everyone.

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
        check_access(address, allow_open)
        ray.init(**options)
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # On loopback alone: Ray would listen on the machine's first address for everyone.
    ray.init(address="local", _node_ip_address="127.0.0.1", num_cpus=cpus, include_dashboard=dashboard, **options)


def check_access(address: str, allow_open: bool = False) -> None:
    """Refuse a cluster that does not answer, that refuses this process, or, unless allowed, that lets everyone in.

    The cluster itself is asked, without a token: what this process has in RAY_AUTH_MODE says nothing about it, because an open
    cluster lets in clients with a token too. Whoever reaches an open cluster runs code on it, with its rights in S3.

    Args:
        address: what RAY_ADDRESS holds, HOST:PORT or `auto`.
        allow_open: only warn of an open cluster.

    Raises:
        ConfigError: as start_ray says.

    """
    head = None if address.startswith("ray://") else _head(address)
    # Ray Client has a server of its own, which answers strangers whatever the cluster does.
    found = "Ray Client, which cannot tell whether the cluster asks for a token" if head is None else _how_open(head, address)
    if found and not allow_open:
        raise ConfigError(
            f"RAY_ADDRESS: found {found} at {address!r}, expected token authentication: start Ray on every node with "
            "RAY_AUTH_MODE=token and one RAY_AUTH_TOKEN (`openssl rand -hex 32`), export both here, or say --cluster.allow_open"
        )
    if found:
        log.warning("event=open_cluster address=%s found=%r", address, found)


def _head(address: str) -> str:
    """Return HOST:PORT of the cluster's head."""
    try:
        head = canonicalize_bootstrap_address(address)
    except (ValueError, OSError) as error:
        # OSError: the host has no address, or with `auto` no cluster runs on this machine.
        raise ConfigError(f"RAY_ADDRESS: found {address!r}, expected HOST:PORT of a running cluster: {error}") from error
    if head is None:
        raise ConfigError(f"RAY_ADDRESS: found {address!r}, expected a running cluster on this machine")
    return head


def _how_open(head: str, address: str) -> str:
    """Return what is open about a cluster, nothing if it asks for a token and takes this process's."""
    status, detail = _ask(_channel_without_token(head))
    if status is grpc.StatusCode.OK:
        return "a cluster that lets everyone in"
    if status is not grpc.StatusCode.UNAUTHENTICATED:
        # The dashboard's address, http://HOST:8265, is for `ray job submit` alone.
        raise ConfigError(f"RAY_ADDRESS: found {address!r}, expected a running cluster's HOST:PORT: {detail}")
    # Ray itself would try for 20 s before it said so.
    if _ask(init_grpc_channel(head, options=GLOBAL_GRPC_OPTIONS))[0] is grpc.StatusCode.UNAUTHENTICATED:
        mode = os.environ.get("RAY_AUTH_MODE", "unset")
        raise ConfigError(
            f"RAY_ADDRESS: found a cluster at {address!r} that refuses this process (RAY_AUTH_MODE is {mode}), "
            "expected RAY_AUTH_MODE=token and the cluster's token in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
        )
    return ""


def _ask(channel: grpc.Channel) -> tuple[grpc.StatusCode, str]:
    """Return how a head answers, and its words where it does not answer well; closes the channel."""
    try:
        channel.unary_unary(CHECK_ALIVE)(b"", timeout=CONNECT_TIMEOUT_S)
    except grpc.RpcError as error:
        return error.code(), error.details()
    finally:
        channel.close()
    return grpc.StatusCode.OK, ""


def _channel_without_token(head: str) -> grpc.Channel:
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return grpc.insecure_channel(head, options=GLOBAL_GRPC_OPTIONS)
    certificate, key, authority = load_certs_from_env()
    return grpc.secure_channel(head, grpc.ssl_channel_credentials(authority, key, certificate), options=GLOBAL_GRPC_OPTIONS)


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

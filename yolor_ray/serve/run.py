"""Serve weights from the command line until SIGINT or SIGTERM.

The job starts Ray on this machine, or joins the cluster that RAY_ADDRESS names, which `ray job submit` sets.
"""

import contextlib
import itertools
import logging
import os
import random
import resource
import shlex
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from yolor_ray import config
from yolor_ray.cluster import ray_internals
from yolor_ray.cluster.environment import WORKER_HOOK, local_ray_settings
from yolor_ray.errors import ConfigError
from yolor_ray.io import manifest
from yolor_ray.io.weights_url import BUILTIN, CONFIG_FILE, absolute_weights, weights_folder
from yolor_ray.serve import haproxy

APPLICATION = "yolor_ray"
HAPROXY_PORTS = range(20_000, 32_000)
"""Range of HAProxy's ports: above Ray's and below those of outgoing connections, because HAProxy opens a port seconds after its choice."""
PROXY_ENVIRONMENT = {ray_internals.HTTP_PROXY_CALLBACK: "yolor_ray.serve.http.upgrade:ignore_upgrades"}
"""Variable by which Ray's Python proxy, which runs where HAProxy does not, reads the bodies of requests that offer another protocol."""
MIN_OPEN_FILES = 16_384
"""Open files that a process needs to start HAProxy, which reserves two per connection and some for itself: 10,276 with Ray's settings."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)

logger = logging.getLogger(__name__)


class _Stopped(BaseException):
    """SIGINT or SIGTERM arrived."""


def serve(settings: config.ServeConfig) -> dict[str, Any]:
    """Serve until SIGINT or SIGTERM, then shut down; return the service's URL, the weights and the seconds of service.

    Raises:
        ConfigError: the port is taken, this machine has fewer CPUs or GPUs than the replicas reserve, no cluster answers at
            RAY_ADDRESS, or the cluster rejects this process.
        StorageError: there are no complete weights at the URL.
        WeightsError: the weights do not fit the network.
    """
    settings = replace(settings, weights=weights_folder(absolute_weights(settings.weights)))
    if settings.weights != BUILTIN:
        manifest.read_published(settings.weights, [CONFIG_FILE])
    url = f"http://{'127.0.0.1' if settings.host == '0.0.0.0' else settings.host}:{settings.port}"
    started = time.monotonic()
    serve_until_signal = _serve_locally if os.environ.get("RAY_ADDRESS", "") in ("", "local") else _serve_in_cluster
    # Standard output is for the result, and Ray prints messages to standard output.
    with _signals_restored(), contextlib.redirect_stdout(sys.stderr):
        _stop_on_signals()
        try:
            serve_until_signal(settings, url)
        except (_Stopped, SystemExit):
            # While Ray starts, its own handler turns a signal into SystemExit.
            logger.info("event=service_stopped")
    return {"url": url, "weights": settings.weights, "seconds": round(time.monotonic() - started, 1)}


def _serve_locally(settings: config.ServeConfig, url: str) -> NoReturn:
    _check_port(settings)
    # Not TMPDIR: HAProxy refuses socket paths over 97 characters, and Ray appends 70 characters to this path.
    with tempfile.TemporaryDirectory(prefix="yolor-", dir="/tmp") as folder:
        os.environ.update(_ray_environment(Path(folder)))
        _check_open_files()
        # Ray reads these variables at its import.
        import ray
        from ray import serve

        with ray_internals.local_ray():
            ray.init("local", include_dashboard=False, log_to_driver=False, runtime_env=WORKER_HOOK)
        _stop_on_signals()
        try:
            _check_resources(settings, ray.cluster_resources())  # type: ignore[no-untyped-call]
            serve.start(http_options={"host": settings.host, "port": settings.port})
            _deploy_and_wait(settings, url)
        finally:
            _ignore_signals()
            serve.shutdown()  # type: ignore[no-untyped-call]
            ray.shutdown()


def _serve_in_cluster(settings: config.ServeConfig, url: str) -> NoReturn:
    import ray
    from ray import serve

    from yolor_ray.cluster.access import check_access

    check_access(os.environ["RAY_ADDRESS"], allow_unauthenticated=True)
    ray.init(runtime_env={**WORKER_HOOK, "env_vars": _without_those_set(PROXY_ENVIRONMENT)})
    _stop_on_signals()
    try:
        serve.start(http_options={"host": settings.host, "port": settings.port})
        _deploy_and_wait(settings, url)
    finally:
        _ignore_signals()
        # Not serve.shutdown(): the cluster's Serve may run applications of other users.
        serve.delete(APPLICATION)
        ray.shutdown()


def _deploy_and_wait(settings: config.ServeConfig, url: str) -> NoReturn:
    from ray import serve

    from yolor_ray.serve.deployment import make_application

    logger.info("event=deployment_started weights=%s", settings.weights)
    try:
        serve.run(make_application(settings), name=APPLICATION)
    except RuntimeError:
        _raise_replica_error(settings)
        raise
    logger.info("event=service_ready url=%s weights=%s", url, settings.weights)
    while True:
        signal.pause()


def _raise_replica_error(settings: config.ServeConfig) -> None:
    """Raise WeightsError or ConfigError if weights or engine prevent the start of replicas; Ray's own error does not name the cause."""
    from yolor_ray.inference.engine_choice import FASTEST, choose_engine
    from yolor_ray.model.weights import load_weights

    network, info = load_weights(settings.weights)
    if settings.engine != FASTEST:
        choose_engine(network, info, engine=settings.engine, precision=settings.precision)


def _check_port(settings: config.ServeConfig) -> None:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            address = f"{settings.host}:{settings.port}, which cannot be bound ({error.strerror})"
            raise ConfigError(f"host, port: found {address}, expected a free port of this machine") from None


def _check_open_files() -> None:
    """Refuse a limit of open files that HAProxy cannot raise far enough: it would end, and Ray would try for minutes to start it."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if os.environ["RAY_SERVE_ENABLE_HA_PROXY"] == "1" and 0 <= limit < MIN_OPEN_FILES:
        expected = f"expected {MIN_OPEN_FILES} or more (`ulimit -n {MIN_OPEN_FILES}`; docker run --ulimit nofile={MIN_OPEN_FILES})"
        raise ConfigError(f"ulimit -n: found {limit} open files, {expected}, or RAY_SERVE_ENABLE_HA_PROXY=0 for Ray's own slower proxy")


def _check_resources(settings: config.ServeConfig, resources: Mapping[str, float]) -> None:
    reservations = (("CPU", "cpus_per_replica", settings.cpus_per_replica), ("GPU", "gpus_per_replica", settings.gpus_per_replica))
    for name, flag, per_replica in reservations:
        available = resources.get(name, 0.0)
        if per_replica * settings.min_replicas > available:
            reserved = f"{per_replica:g} for each of {settings.min_replicas} replicas"
            raise ConfigError(f"{flag}: found {reserved}, expected at most the {available:g} {name}s of this machine in all")


def _ray_environment(folder: Path) -> dict[str, str]:
    """Return the environment that Ray's processes need before they start, without the variables that the user has set."""
    variables = {"RAY_SERVE_ENABLE_HA_PROXY": "1" if ray_internals.has_haproxy() else "0"}
    variables |= {**PROXY_ENVIRONMENT, **local_ray_settings()}
    # On one machine there is no load balancer that must first notice that a replica leaves.
    variables[ray_internals.MIN_DRAINING_PERIOD] = "1"
    # By default Ray kills a proxy that takes over 5 s to start, and on a busy machine the service then never starts.
    variables[ray_internals.PROXY_START_TIMEOUT] = "60"
    # A killed proxy is found by the third check that fails; by default the checks are 10 s apart.
    variables[ray_internals.PROXY_CHECK_PERIOD] = "2"
    if variables["RAY_SERVE_ENABLE_HA_PROXY"] == "1":
        variables |= _haproxy_environment(folder)
    return _without_those_set(variables)


def _without_those_set(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if name not in os.environ}


def _haproxy_environment(folder: Path) -> dict[str, str]:
    """Return the variables that give HAProxy files and ports of its own; by default all instances on a machine share and overwrite them."""
    starter = folder / "haproxy"
    command = shlex.join([sys.executable, "-IS", haproxy.__file__, ray_internals.get_haproxy_binary()])
    starter.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    starter.chmod(0o700)
    free_ports = filter(_is_free, random.sample(HAPROXY_PORTS, len(HAPROXY_PORTS)))
    statistics_port, metrics_port = itertools.islice(free_ports, 2)
    return {
        ray_internals.HAPROXY_BINARY: str(starter),
        ray_internals.HAPROXY_CONFIG: str(folder / "haproxy.cfg"),
        ray_internals.HAPROXY_SOCKET: str(folder / "admin.sock"),
        ray_internals.HAPROXY_STATE_FOLDER: str(folder),
        ray_internals.HAPROXY_STATE_FILE: str(folder / "server-state"),
        ray_internals.HAPROXY_METRICS_SOCKET: str(folder / "metrics.sock"),
        ray_internals.HAPROXY_STATISTICS_PORT: str(statistics_port),
        ray_internals.HAPROXY_METRICS_PORT: str(metrics_port),
    }


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _signals_restored() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _stop_on_signals() -> None:
    """Turn SIGINT and SIGTERM into _Stopped; call again after ray.init(), which installs handlers of its own that abort after 3 s."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise _Stopped

    for number in SIGNALS:
        signal.signal(number, stop)


def _ignore_signals() -> None:
    """Ignore SIGINT and SIGTERM, so that repeated signals do not interrupt the shutdown."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)

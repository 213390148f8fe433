"""Ray Serve application of the service: one deployment, with decoding, network and NMS in one hop.

`jobs/serve.py` calls `make_application`; `serve deploy clusters/serve.yaml` calls `build`.
"""

import logging
import math
from dataclasses import replace
from typing import Any

import pydantic
from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.schema import LoggingConfig

from yolor_ray import config
from yolor_ray.cluster.environment import PROCESS_SETTINGS
from yolor_ray.cluster.ray_internals import keep_replica_on_loopback
from yolor_ray.config.renamed import current_fields
from yolor_ray.errors import ConfigError
from yolor_ray.io.redact import hide_secrets
from yolor_ray.io.release_folder import is_release_folder
from yolor_ray.serve.catalog.listed_models import ListedModels
from yolor_ray.serve.catalog.model_list import ModelList, read_model_list
from yolor_ray.serve.engine import LocalEngine
from yolor_ray.serve.http.api import create_app
from yolor_ray.serve.http.upgrade import ignore_upgrades
from yolor_ray.serve.metrics import ServiceMetrics
from yolor_ray.serve.run import OPEN_RISK
from yolor_ray.serve.service import Service

PROBE_SLOTS = 32
"""Requests for pages and probes that a replica answers while its queue is full."""

OUTSIDE_ARGS = {"host", "port", "name", "prefix", "tls_cert", "tls_key"}
"""Fields that a Serve config file has elsewhere: in its `http_options`, and beside `args`."""


logger = logging.getLogger(__name__)


@serve.ingress()
class Detector:
    """One replica: HTTP server and network in one process."""

    def __init__(self, settings: config.ServeConfig) -> None:
        """Load the weights; the replica is ready when the constructor returns."""
        # `serve deploy` starts replicas without a job of this package, and so without the hook that redacts secrets.
        hide_secrets()
        # Under HAProxy the replica is an HTTP server, which Ray starts when the constructor has returned.
        ignore_upgrades()
        keep_replica_on_loopback()
        replica = serve.get_replica_context().replica_id.unique_id
        self._service = start_service(settings, ServiceMetrics(replica, to_ray=True))

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the ASGI application for the HTTP server of this replica."""
        return create_app(self._service, echo_request_id=False)

    def check_health(self) -> None:
        """Raise RuntimeError if the network has stopped working; Ray then replaces this replica."""
        if not self._service.ready:
            raise RuntimeError("the network failed several times in a row")


def start_service(settings: config.ServeConfig, metrics: ServiceMetrics) -> Service:
    """Return a service whose weights are loaded, those of the default of several models.

    A model of a release folder follows the releases from now on, while it is loaded.

    Raises:
        ConfigError: the engine does not run the network, or the file of models cannot be used.
        StorageError: the weights cannot be read.
        WeightsError: the weights do not fit the network.
    """
    if settings.models:
        listed = read_model_list(settings.models)
    elif is_release_folder(settings.weights):
        name = settings.weights.rstrip("/").rpartition("/")[2]
        listed = ModelList(name, {name: settings.weights})
        # The limit is one of several models.
        settings = replace(settings, max_model_mb=math.inf)
    else:
        return Service(LocalEngine(settings), settings, metrics)
    loader = ListedModels(settings, listed)
    source = loader.source(listed.default)
    return Service(loader.load(source), settings, metrics, source.release, loader)


def make_application(settings: config.ServeConfig) -> Application:
    """Return the Ray Serve application for these settings."""
    scaling: dict[str, Any] = {"num_replicas": settings.min_replicas}
    if settings.max_replicas > settings.min_replicas:
        scaling = {
            "autoscaling_config": {
                "min_replicas": settings.min_replicas,
                "max_replicas": settings.max_replicas,
                "target_ongoing_requests": settings.target_ongoing_requests,
            }
        }
    deployment = serve.deployment(
        name="Detector",
        ray_actor_options={
            "num_cpus": settings.cpus_per_replica,
            "num_gpus": settings.gpus_per_replica,
            "runtime_env": {"env_vars": _replica_environment(settings)},
        },
        # The service bounds its queue and answers 429 in JSON. Ray's limit, which answers in plain text, is higher, so that probes
        # reach a full replica.
        max_ongoing_requests=settings.places + PROBE_SLOTS,
        # The service has an access log of its own.
        logging_config=LoggingConfig(enable_access_log=False),
        # With 0, Ray stops a single replica before its successor has loaded. Measured: 7 s without service.
        max_surge_percent=100,
        health_check_period_s=10,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=settings.request_timeout_s,
        **scaling,
    )
    return deployment(Detector).bind(settings)


def build(args: dict[str, Any]) -> Application:
    """Return the application for the `args` of a Serve config file; the keys are the fields of `ServeConfig`.

    A service without keys warns, whatever its address: `http_options` of the file is not known here.

    Raises:
        ConfigError: a key is unknown or missing, or a value has the wrong type or range.
    """
    args = current_fields("serve", args)
    allowed = sorted(set(config.ServeConfig.__dataclass_fields__) - OUTSIDE_ARGS)
    unknown = sorted(set(args) - set(allowed))
    if unknown:
        raise ConfigError(f"args: found {', '.join(unknown)}, expected only {', '.join(allowed)}")
    try:
        settings = pydantic.TypeAdapter(config.ServeConfig).validate_python(args)
    except pydantic.ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: found {fault['input']!r}, {fault['msg']}" for fault in error.errors())
        raise ConfigError(f"args: {faults}") from error
    if not settings.api_keys:
        logger.warning("event=service_is_open host=http_options missing='api_keys' risk='%s'", OPEN_RISK)
    return make_application(settings)


def _replica_environment(settings: config.ServeConfig) -> dict[str, str]:
    """Return variables that keep freed image buffers in the process and limit the threads of libraries, by default one per core."""
    return {
        **PROCESS_SETTINGS,
        # Nothing blocks the event loop of the application. In a loop of its own, each request would change threads several times.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "OMP_NUM_THREADS": str(settings.compute_threads),
        "MKL_NUM_THREADS": str(settings.compute_threads),
    }

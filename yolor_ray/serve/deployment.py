"""Run the service as one Ray Serve deployment: decode, network and NMS in one hop.

`jobs/serve.py` and `serve deploy clusters/serve.yaml` both come through `build`.
"""

from typing import Any

import pydantic
from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from yolor_ray import config
from yolor_ray.cluster.environment import KEEP_MEMORY
from yolor_ray.errors import ConfigError
from yolor_ray.io.redact import hide_secrets
from yolor_ray.serve.engine import LocalEngine
from yolor_ray.serve.http.api import create_app
from yolor_ray.serve.metrics import ServiceMetrics
from yolor_ray.serve.service import Service

PAGES = 32
"""Requests for pages and probes that a replica answers while its queue is full."""


@serve.ingress()
class Detector:
    """Answer HTTP with one network in one process."""

    def __init__(self, settings: config.ServeConfig) -> None:
        """Load the weights; the replica counts as ready when this returns."""
        # `serve deploy` starts replicas without a job of ours that would have told their processes to.
        hide_secrets()
        replica = serve.get_replica_context().replica_id.unique_id
        self._service = Service(LocalEngine(settings), settings, ServiceMetrics(replica, to_ray=True))

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the application for this replica's HTTP server."""
        return create_app(self._service, echo_request_id=False)

    def check_health(self) -> None:
        """Raise when the network stopped working, so that Ray replaces this replica."""
        if not self._service.ready:
            raise RuntimeError("the network failed several times in a row")


def application(settings: config.ServeConfig) -> Application:
    """Return the application that Ray Serve runs for these settings."""
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
            "runtime_env": {"env_vars": _environment(settings)},
        },
        # The service bounds its own queue and answers 429 in JSON; Ray's own limit (plain text) lies above it, so that
        # probes get through to a replica that is full.
        max_ongoing_requests=settings.max_queued + settings.max_batch + PAGES,
        # With 0 a single replica is stopped before its successor has loaded: seconds without service.
        max_surge_percent=100,
        health_check_period_s=10,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=settings.request_timeout_s,
        **scaling,
    )
    return deployment(Detector).bind(settings)


def build(args: dict[str, Any]) -> Application:
    """Return the application for the `args` of a Serve config file; the keys are those of `config.Serve`.

    Raises:
        ConfigError: a key is unknown or missing, or a value has the wrong type or range.
    """
    # Where to listen is the cluster's `http_options`, not the application's.
    known = sorted(set(config.ServeConfig.__dataclass_fields__) - {"host", "port"})
    unknown = sorted(set(args) - set(known))
    if unknown:
        raise ConfigError(f"args: found {', '.join(unknown)}, expected only {', '.join(known)}")
    try:
        return application(pydantic.TypeAdapter(config.ServeConfig).validate_python(args))
    except pydantic.ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: found {fault['input']!r}, {fault['msg']}" for fault in error.errors())
        raise ConfigError(f"args: {faults}") from error


def _environment(settings: config.ServeConfig) -> dict[str, str]:
    """Keep freed image buffers in the process, and keep libraries from starting a thread per core."""
    return {
        **KEEP_MEMORY,
        "OMP_NUM_THREADS": str(settings.compute_threads),
        "MKL_NUM_THREADS": str(settings.compute_threads),
    }

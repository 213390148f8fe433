"""Metrics of one replica for Prometheus.

The same numbers are published twice. `GET /metrics` returns the numbers of the replica that answers, which is enough for one replica.
Inside Ray, the metrics port of each node returns the numbers of all its replicas (`ray_yolor_…`): a cluster should scrape these ports.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from ray.util import metrics

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SHARES = tuple(tenth / 10 for tenth in range(1, 11))
COUNTS = (0.5, 1.5, 2.5, 4.5, 8.5, 16.5, 32.5, 64.5, 128.5, 300.5)
"""Between whole numbers, because Ray's port counts each number as the middle of its bucket."""


@dataclass(frozen=True)
class _MetricSpec:
    description: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram; empty for a counter and for a gauge."""
    is_gauge: bool = False


SPECS: Mapping[str, _MetricSpec] = {
    "yolor_requests": _MetricSpec("Requests answered, by route and HTTP status.", ("route", "status")),
    "yolor_request_seconds": _MetricSpec("Time from first byte to answer, by route.", ("route",), SECONDS),
    "yolor_stage_seconds": _MetricSpec(
        "Time of one image per stage: body, load, decode, queue, network (with NMS), answer.", ("stage",), SECONDS
    ),
    "yolor_refusals": _MetricSpec("Requests, and images of a batch, answered with an error, by its code.", ("reason",)),
    "yolor_version_requests": _MetricSpec(
        "Requests with an image answered by each model and version of its weights.", ("model", "version")
    ),
    "yolor_rejected_versions": _MetricSpec(
        "Versions that the replica rejected after the comparison with the version before, by model.", ("model",)
    ),
    "yolor_in_flight": _MetricSpec("Images in work.", is_gauge=True),
    "yolor_queue_depth": _MetricSpec("Images that wait for the network.", is_gauge=True),
    "yolor_batch_images": _MetricSpec("Images per forward pass.", (), COUNTS),
    "yolor_batch_fill": _MetricSpec("Images per forward pass, as a share of the largest batch.", (), SHARES),
    "yolor_detections": _MetricSpec("Boxes per image.", (), (0.0, *COUNTS)),
    "yolor_confidence": _MetricSpec("Confidence of each box.", (), SHARES),
}


class ServiceMetrics:
    """Counters, gauges and histograms of one replica."""

    def __init__(self, replica: str = "", to_ray: bool = False) -> None:
        """Create the metrics of SPECS.

        Args:
            replica: name of the replica, a label of every metric of `GET /metrics`.
            to_ray: publish the metrics on Ray's metrics ports as well.
        """
        self._registry = CollectorRegistry()
        self._replica = replica
        self._metrics = {name: self._prometheus_metric(name, spec) for name, spec in SPECS.items()}
        self._ray = {name: _ray_metric(name, spec) for name, spec in SPECS.items()} if to_ray else {}
        self._series: dict[tuple[str, ...], Any] = {}

    def count(self, name: str, **labels: str) -> None:
        """Increment a counter."""
        self._one(name, labels).inc()
        if self._ray:
            self._ray[name].inc(tags=labels)

    def show(self, name: str, **labels: str) -> None:
        """Publish a counter before its first increment: Prometheus sees no increase of a counter that begins with 1."""
        self._one(name, labels)

    def observe(self, name: str, *values: float, **labels: str) -> None:
        """Add values to a histogram."""
        series = self._one(name, labels)
        for value in values:
            series.observe(value)
            if self._ray:
                self._ray[name].observe(value, tags=labels)

    def set(self, name: str, value: float) -> None:
        """Set a gauge."""
        self._one(name, {}).set(value)
        if self._ray:
            self._ray[name].set(value)

    def text(self) -> tuple[bytes, str]:
        """Return the replica's metrics in Prometheus text format, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4

    def _one(self, name: str, labels: Mapping[str, str]) -> Any:
        """Return the time series of a metric with these labels, which Prometheus's library takes long to find."""
        key = (name, *[labels[label] for label in SPECS[name].labels])
        if key not in self._series:
            self._series[key] = self._metrics[name].labels(self._replica, *key[1:])
        return self._series[key]

    def _prometheus_metric(self, name: str, spec: _MetricSpec) -> Any:
        labels = ("replica", *spec.labels)
        if spec.buckets:
            return Histogram(name, spec.description, labels, buckets=spec.buckets, registry=self._registry)
        metric = (Gauge if spec.is_gauge else Counter)(name, spec.description, labels, registry=self._registry)
        if not spec.labels:
            # Prometheus sees no increase of a counter that begins with 1.
            metric.labels(self._replica)
        return metric


def _ray_metric(name: str, spec: _MetricSpec) -> Any:
    if spec.buckets:
        # Ray requires boundaries above zero.
        return metrics.Histogram(name, spec.description, [bound for bound in spec.buckets if bound > 0], tag_keys=spec.labels)
    return (metrics.Gauge if spec.is_gauge else metrics.Counter)(name, spec.description, tag_keys=spec.labels)

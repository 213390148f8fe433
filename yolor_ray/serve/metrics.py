"""Count and time what one replica does, for Prometheus.

The same numbers go two ways: `GET /metrics` shows those of the replica that answers (enough with one replica), and inside
Ray each node's metrics port shows those of all replicas on it (`ray_yolor_…`), which is what a cluster should scrape.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from ray.util import metrics

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
COUNTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 300.0)


@dataclass(frozen=True)
class _Kind:
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


KINDS: Mapping[str, _Kind] = {
    "yolor_requests": _Kind("Requests answered, by route and HTTP status.", ("route", "status")),
    "yolor_request_seconds": _Kind("Time from first byte to answer, by route.", ("route",), SECONDS),
    "yolor_stage_seconds": _Kind("Time of one request per stage: body, decode, queue, network (with NMS), answer.", ("stage",), SECONDS),
    "yolor_batch_images": _Kind("Images per forward pass.", (), COUNTS),
    "yolor_detections": _Kind("Boxes per image.", (), (0.0, *COUNTS)),
}


class ServiceMetrics:
    """Hold the metrics of one replica."""

    def __init__(self, replica: str = "", to_ray: bool = False) -> None:
        self._registry = CollectorRegistry()
        self._replica = replica
        self._metrics = {name: self._local(name, kind) for name, kind in KINDS.items()}
        self._ray = {name: _ray_metric(name, kind) for name, kind in KINDS.items()} if to_ray else {}

    def count(self, name: str, **labels: str) -> None:
        """Add one to a counter."""
        self._metrics[name].labels(self._replica, *_values(name, labels)).inc()
        if self._ray:
            self._ray[name].inc(tags=labels)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add one value to a histogram."""
        self._metrics[name].labels(self._replica, *_values(name, labels)).observe(value)
        if self._ray:
            self._ray[name].observe(value, tags=labels)

    def text(self) -> tuple[bytes, str]:
        """Return the replica's metrics in Prometheus text format, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4

    def _local(self, name: str, kind: _Kind) -> Any:
        labels = ("replica", *kind.labels)
        if kind.buckets:
            return Histogram(name, kind.text, labels, buckets=kind.buckets, registry=self._registry)
        return Counter(name, kind.text, labels, registry=self._registry)


def _values(name: str, labels: Mapping[str, str]) -> Sequence[str]:
    return [labels[label] for label in KINDS[name].labels]


def _ray_metric(name: str, kind: _Kind) -> Any:
    if kind.buckets:
        # Ray wants boundaries above zero.
        return metrics.Histogram(name, kind.text, [edge for edge in kind.buckets if edge > 0], tag_keys=kind.labels)
    return metrics.Counter(name, kind.text, tag_keys=kind.labels)

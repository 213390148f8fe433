"""Define the settings of serving, and of releases for running services."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from yolor_ray.config.network import Precision
from yolor_ray.errors import check


@dataclass(frozen=True)
class ServedRange:
    """Allowed values of a parameter that a request may set: from `low` to `high`, `high` included."""

    low: float
    high: float
    above_low: bool = False
    """True if `low` itself is not allowed."""

    def allows(self, value: float) -> bool:
        """Return True if a value lies in the range."""
        return (self.low < value if self.above_low else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        """Return the range in words, as error messages write it."""
        return f"over {self.low}, up to {self.high}" if self.above_low else f"{self.low} to {self.high}"


MAX_IMAGES = 32
"""Most images of one request: the service refuses more, and the client sends no more."""
TIMEOUT_HEADER = "X-Request-Timeout-Ms"
"""Header with the longest time that a client waits for its answer, in milliseconds."""
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#@]+", re.IGNORECASE)
"""Origin of a web page."""
NAME = re.compile(r"[A-Za-z0-9._-]+")
PREFIX = re.compile(r"/|(/[A-Za-z0-9._-]+)+")
SERVED_RANGES = {
    "confidence": ServedRange(0, 1),
    "iou": ServedRange(0, 1, above_low=True),
    "max_detections": ServedRange(1, 1000),
    "tile": ServedRange(64, 65_536),
    "overlap": ServedRange(0, 0.5),
}
"""Ranges of the options of a detection, by parameter; the settings, the HTTP parameters and OpenAPI take the ranges from here."""


Confidence = float | Literal["best"]
"""Lowest confidence of a detection, 0 to 1. `best` takes for each class the confidence with the best F1 score on the validation set, which
the weights hold, and FALLBACK_CONFIDENCE for a class without one."""
FALLBACK_CONFIDENCE = 0.25
"""Lowest confidence of the detections of a class whose best confidence was not measured."""


def check_limits(confidence: Confidence, iou: float, max_detections: int) -> None:
    """Raise ConfigError if a limit of a detection is out of range."""
    if confidence != "best":
        is_number = isinstance(confidence, int | float)
        check(
            is_number and SERVED_RANGES["confidence"].allows(confidence),
            "confidence",
            confidence,
            f"{SERVED_RANGES['confidence']}, or best",
        )
    for name, value in (("iou", iou), ("max_detections", max_detections)):
        check(SERVED_RANGES[name].allows(value), name, value, str(SERVED_RANGES[name]))


@dataclass(frozen=True)
class ServeConfig:
    """HTTP service of weights, or of several models, on autoscaling replicas."""

    weights: str = ""
    """URL of a weights folder, of an export, of the folder of a finished run, or of a release folder, from which new versions come while
    the service runs; unfused weights are fused when they are loaded. Or give models."""
    models: str = ""
    """URL of a YAML file with the names and weights, or release folders, of several models, and the name of the default. Each replica loads
    the default when it starts, and each other model at its first request."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all."""
    port: int = 8000
    """TCP port, 1 to 65535."""
    name: str = "yolor_ray"
    """Name of the application; services with different names and prefixes run beside each other on one cluster."""
    prefix: str = "/"
    """Start of all paths of the service, such as `/cars`."""
    api_keys: str = ""
    """URL of a file with the hashed keys of clients; the file is read again every 5 s. Empty = anyone who reaches the port may use the
    service."""
    open_metrics: bool = False
    """Answer `/metrics` without a key."""
    tls_cert: str = ""
    """PEM file with the certificate of the service and those of its issuers; with `tls_key`, the service speaks HTTPS."""
    tls_key: str = ""
    """PEM file with the certificate's private key, without a password."""
    confidence: Confidence = "best"
    """Lowest confidence of a returned box, 0 to 1; `best` takes that of the weights for each class, or else 0.25. A request may set
    another."""
    iou: float = 0.5
    """IoU from which boxes of one class are one object, over 0, up to 1; a request may set another."""
    max_detections: int = 300
    """Most boxes per image, 1 to 1000; a request may set another."""
    min_replicas: int = 1
    """Fewest replicas, 1 or more."""
    max_replicas: int = 1
    """Most replicas; more than min_replicas turns autoscaling on."""
    target_ongoing_requests: float = 4.0
    """Target of autoscaling: requests in progress per replica."""
    gpus_per_replica: float = 0.0
    """GPUs that each replica reserves; replicas with a fraction share a GPU."""
    cpus_per_replica: float = 1.0
    """Logical CPUs that each replica reserves."""
    compute_threads: int = 1
    """Compute threads per replica without a GPU, 1 or more."""
    decode_threads: int = 2
    """Threads per replica that decode images beside the network, and as many threads that make masks, 1 or more."""
    engine: Literal["fastest", "torch", "onnxruntime", "openvino"] = "fastest"
    """Engine that executes the network. When a replica starts, `fastest` builds each installed engine, compares its predictions with
    the weights' and measures its speed. A named engine saves most of that time. On a GPU there is only torch. An export has its own
    engine."""
    precision: Precision = "float32"
    """Number format of the network's computation. `bfloat16` is faster on a CPU or GPU that supports it, most of all for large networks.
    Scores change by about 0.01: measure the AP of the weights before. ONNX Runtime always computes in float32."""
    max_batch: int = 8
    """Most images per forward pass, 1 or more."""
    batch_wait_ms: float = 0.0
    """Longest wait of an idle network for more images, milliseconds; a busy network finds its next batch in the queue."""
    max_queued: int = 64
    """Images that may wait per replica beside one full batch; requests with further images are answered 429 with Retry-After."""
    max_body_mb: float = 20.0
    """Largest request body as transmitted, MB."""
    max_megapixels: float = 50.0
    """Largest image, million pixels, checked before decoding."""
    max_decoded_megapixels: float = 100.0
    """Pixels, in million, of all images that a replica decodes or cuts into tiles at a time; further images wait."""
    max_model_mb: float = 2000.0
    """Files of the models, and of their new versions, that a replica with several models keeps loaded, MB; the least recently used model
    without work is unloaded where another one needs the room, and never the default."""
    request_timeout_s: float = 30.0
    """Longest time for one request, seconds; the body must arrive within nine tenths of that time."""
    access_log: str = ""
    """File of each node to which its replicas append one JSON line per request; `/dev/stdout` is Ray's log of the replica. Empty = none."""
    access_log_rate: float = 1.0
    """Share of the requests in the access log, over 0, up to 1; those with status 500 and above are always there."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages that may read the answers in a browser, such as `https://app.example`; `*` = all. Empty = none."""

    def __post_init__(self) -> None:
        """Check for weights or models, and check ranges."""
        given = self.weights and self.models and f"{self.weights} and models {self.models}"
        expected = "either weights, a URL, or models, the URL of a list of models"
        check(bool(self.weights) != bool(self.models), "weights", given or "none", expected)
        for origin in self.cors_origins:
            check(origin == "*" or ORIGIN.fullmatch(origin) is not None, "cors_origins", origin, "* or SCHEME://HOST[:PORT] without a path")
        check(1 <= self.port <= 65535, "port", self.port, "1 to 65535")
        check(NAME.fullmatch(self.name) is not None, "name", self.name, "letters, digits, . _ and -")
        check(PREFIX.fullmatch(self.prefix) is not None, "prefix", self.prefix, "/ or /NAME, of letters, digits, . _ and -")
        check("://" not in self.access_log, "access_log", self.access_log, "a path, not a URL: a log is appended to")
        check(0 < self.access_log_rate <= 1, "access_log_rate", self.access_log_rate, "over 0, up to 1")
        check(bool(self.tls_cert) == bool(self.tls_key), "tls_cert", self.tls_cert or "none", "a file together with tls_key, or neither")
        check_limits(self.confidence, self.iou, self.max_detections)
        check(1 <= self.min_replicas <= self.max_replicas, "min_replicas", self.min_replicas, f"1 to max_replicas, {self.max_replicas}")
        for name in ("compute_threads", "decode_threads", "max_batch"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("gpus_per_replica", "cpus_per_replica", "batch_wait_ms", "max_queued"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        expected = f"max_megapixels, {self.max_megapixels:g}, or more"
        check(self.max_decoded_megapixels >= self.max_megapixels, "max_decoded_megapixels", self.max_decoded_megapixels, expected)
        for name in ("target_ongoing_requests", "max_body_mb", "max_megapixels", "max_model_mb", "request_timeout_s"):
            check(getattr(self, name) > 0, name, getattr(self, name), "more than 0")

    @property
    def places(self) -> int:
        """Most images of a replica at a time, in work or waiting."""
        return self.max_queued + self.max_batch


@dataclass(frozen=True, kw_only=True)
class ReleaseConfig:
    """New version of the weights in a release folder, for the services that run with this folder, or the version before again."""

    weights: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[URL]")] = ""
    """URL of a weights folder, of an export, or of the folder of a finished run; its files are copied. Or give back."""
    to: str
    """URL of the release folder, such as `s3://bucket/live`; the first release makes it, and `serve` takes it."""
    back: bool = False
    """Go back to the version before the present one, at once."""
    allow_changes: bool = False
    """The version may take longer, find other things, and have fewer tasks, than the version before: only failures reject it."""

    def __post_init__(self) -> None:
        """Check for weights or the way back."""
        check(bool(self.weights) != self.back, "release", self.weights or "no weights", "either the URL of weights or --back")
        check(bool(self.to), "to", self.to, "the URL of a release folder")
        check(not (self.back and self.allow_changes), "allow_changes", True, "weights beside: the version before is not compared again")

"""Define the knobs of serving."""

from dataclasses import dataclass
from typing import Literal

from yolor_ray.errors import check


@dataclass(frozen=True)
class ServeConfig:
    """Serve weights over HTTP on autoscaling replicas."""

    weights: str
    """URL of a weights folder; fused when loaded if it is not already."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all."""
    port: int = 8000
    """TCP port, 1 to 65535."""
    confidence: float = 0.25
    """Least confidence of a returned box, 0 to 1; a request may override it."""
    iou: float = 0.5
    """Boxes of one class that overlap more than this are one object, over 0, up to 1; a request may override it."""
    max_detections: int = 300
    """Most boxes per image, 1 to 1000; a request may override it."""
    min_replicas: int = 1
    """Fewest replicas, 1 or more."""
    max_replicas: int = 1
    """Most replicas; more than min_replicas turns autoscaling on."""
    target_ongoing_requests: float = 4.0
    """Requests in work per replica that autoscaling aims at."""
    gpus_per_replica: float = 0.0
    """GPUs that each replica reserves; a fraction lets replicas share one."""
    cpus_per_replica: float = 1.0
    """Logical CPUs that each replica reserves."""
    compute_threads: int = 1
    """Compute threads per replica without a GPU, 1 or more."""
    decode_threads: int = 2
    """Threads per replica that decode images beside the network, and as many that make masks, 1 or more."""
    engine: Literal["fastest", "torch", "onnxruntime", "openvino"] = "fastest"
    """What runs the network. `fastest` builds each that is installed when a replica starts, checks it against the weights and times it;
    naming one saves most of that time. On a GPU there is only torch."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in. `bfloat16` is faster where the CPU or GPU computes in it, most of all for large networks, and
    scores move by about 0.01: measure the weights' AP before. ONNX Runtime keeps to float32."""
    max_batch: int = 8
    """Most images per forward pass, 1 or more."""
    batch_wait_ms: float = 0.0
    """Longest wait of an idle network for more images, milliseconds; a busy one finds its next batch waiting anyway."""
    max_queued: int = 64
    """Requests that may wait per replica beside one full batch; more are answered 429 with Retry-After."""
    max_body_mb: float = 20.0
    """Largest request body as it travels, MB."""
    max_megapixels: float = 50.0
    """Largest image, million pixels, checked before decoding."""
    request_timeout_s: float = 30.0
    """Longest time for one request, seconds; its body must be in after nine tenths of it."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check(1 <= self.port <= 65535, "port", self.port, "1 to 65535")
        check(0 <= self.confidence <= 1, "confidence", self.confidence, "0 to 1")
        check(0 < self.iou <= 1, "iou", self.iou, "over 0, up to 1")
        check(1 <= self.max_detections <= 1000, "max_detections", self.max_detections, "1 to 1000")
        check(1 <= self.min_replicas <= self.max_replicas, "min_replicas", self.min_replicas, f"1 to max_replicas, {self.max_replicas}")
        for name in ("compute_threads", "decode_threads", "max_batch"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("gpus_per_replica", "cpus_per_replica", "batch_wait_ms", "max_queued"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("target_ongoing_requests", "max_body_mb", "max_megapixels", "request_timeout_s"):
            check(getattr(self, name) > 0, name, getattr(self, name), "more than 0")

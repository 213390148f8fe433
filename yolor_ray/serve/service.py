"""Process one request through its stages (body, decode, queue, network, answer), and refuse requests beyond the limits.

All resources that a replica holds for requests are bounded: requests in progress, bytes per body, pixels per image, seconds per request.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from starlette.requests import Request

from yolor_ray import config
from yolor_ray.data.images.header import read_header
from yolor_ray.serve.batcher import Batcher
from yolor_ray.serve.engine import DetectOptions, Engine, PreparedImage, TimedDetections
from yolor_ray.serve.http.api_keys import ApiKeys
from yolor_ray.serve.http.body import image_bytes, read_body
from yolor_ray.serve.http.errors import ApiError
from yolor_ray.serve.metrics import ServiceMetrics
from yolor_ray.serve.response import Json, detections_json

RETRY_AFTER_S = 1
MAX_FAILED_BATCHES = 3
"""Consecutive failed batches after which a replica is no longer ready."""


class Service:
    """Engine of one replica with its queue and its metrics."""

    def __init__(self, engine: Engine, settings: config.ServeConfig, metrics: ServiceMetrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self.info = engine.info
        self.engine_name, self.precision = engine.name, engine.precision
        self.keys = ApiKeys(settings.api_keys) if settings.api_keys else None
        if self.keys:
            self.keys.keep_fresh()
        self._engine = engine
        self._decoders = ThreadPoolExecutor(settings.decode_threads, "decode")
        # A pool of their own, so that responses do not wait behind the decoding of new requests.
        self._responders = ThreadPoolExecutor(settings.decode_threads, "answer")
        self._batcher = Batcher(self._detect_batch, settings.max_batch, settings.batch_wait_ms / 1e3)
        self._in_progress = 0
        self._failed_batches = 0

    @property
    def ready(self) -> bool:
        """Return True unless the last MAX_FAILED_BATCHES batches failed."""
        return self._failed_batches < MAX_FAILED_BATCHES

    async def detect(self, request: Request, options: DetectOptions) -> Json:
        """Return the response to a request, without its request id; raises ApiError or ImageError."""
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self.settings.request_timeout_s):
                with self._request_slot():
                    return await self._detect(request, options, started)
        except TimeoutError:
            raise ApiError(
                "timeout", f"no answer within {self.settings.request_timeout_s:g} s; the service is slow or overloaded"
            ) from None

    @contextmanager
    def _request_slot(self) -> Iterator[None]:
        limit = self.settings.max_queued + self.settings.max_batch
        if self._in_progress >= limit:
            raise ApiError("overloaded", f"{limit} requests are in progress already; try again later", {"Retry-After": str(RETRY_AFTER_S)})
        self._count_in_progress(1)
        try:
            yield
        finally:
            self._count_in_progress(-1)

    def _count_in_progress(self, more: int) -> None:
        self._in_progress += more
        self.metrics.set("yolor_in_flight", self._in_progress)

    async def _detect(self, request: Request, options: DetectOptions, started: float) -> Json:
        # A stalled body is the client's fault and has an error code of its own, hence a timeout a little before the request's.
        body = await read_body(request, int(self.settings.max_body_mb * 1e6), 0.9 * self.settings.request_timeout_s)
        received = time.perf_counter()
        loop = asyncio.get_running_loop()
        prepared = await loop.run_in_executor(self._decoders, self._prepare, request, body)
        decoded = time.perf_counter()
        self.metrics.set("yolor_queue_depth", self._batcher.waiting + 1)
        result = await self._batcher.submit((prepared, options))
        detected = time.perf_counter()
        letterbox = prepared.letterbox
        fields = await loop.run_in_executor(self._responders, detections_json, self.info, result.detections, letterbox, options)
        stages_s = {
            "body": received - started,
            "decode": decoded - received,
            "queue": max(detected - decoded - result.seconds, 0.0),
            "network": result.seconds,
        }
        if len(self.info.tasks) > 1:
            stages_s["answer"] = time.perf_counter() - detected
        self._observe(stages_s, fields["detections"])
        answer = {
            "model": {"name": self.info.name, "version": self.info.version},
            "image": {"width": letterbox.width, "height": letterbox.height},
            **fields,
            "timing_ms": {stage: round(seconds * 1e3, 3) for stage, seconds in stages_s.items()},
        }
        logged = {name: answer[name] for name in ("image", "timing_ms")}
        request.state.facts = {"body_bytes": len(body), "detections": len(fields["detections"]), **logged}
        return answer

    def _observe(self, stages_s: Mapping[str, float], detections: Sequence[Json]) -> None:
        for stage, seconds in stages_s.items():
            self.metrics.observe("yolor_stage_seconds", seconds, stage=stage)
        self.metrics.observe("yolor_detections", len(detections))
        for detection in detections:
            self.metrics.observe("yolor_confidence", detection["confidence"])

    def _prepare(self, request: Request, body: bytes) -> PreparedImage:
        data = image_bytes(request.headers.get("content-type", ""), body)
        if self.keys is not None:
            header = read_header(data)
            # An image over the limit is refused without decoding.
            if header.width * header.height <= self.settings.max_megapixels * 1e6:
                self.keys.charge_pixels(request.state.api_key, header.width * header.height)
        return self._engine.prepare(data)

    def _detect_batch(self, images: Sequence[tuple[PreparedImage, DetectOptions]]) -> list[TimedDetections]:
        self.metrics.observe("yolor_batch_images", len(images))
        self.metrics.observe("yolor_batch_fill", len(images) / self.settings.max_batch)
        self.metrics.set("yolor_queue_depth", self._batcher.waiting)
        self._failed_batches += 1
        results = self._engine.detect(images)
        self._failed_batches = 0
        return results

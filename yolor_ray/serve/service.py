"""Take one request through its stages: body, decode, queue, network, answer; refuse what does not fit in.

Everything that a replica holds per request is bounded: requests in work, bytes per body, pixels per image, seconds.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.requests import Request

from yolor_ray import config
from yolor_ray.serve.batcher import Batcher
from yolor_ray.serve.engine import Engine, Found, Options, Prepared
from yolor_ray.serve.http.body import image_bytes, read_body
from yolor_ray.serve.http.errors import ApiError
from yolor_ray.serve.metrics import ServiceMetrics
from yolor_ray.serve.response import Described, describe

RETRY_AFTER_S = 1
FAILED_BATCHES_IN_A_ROW = 3


@dataclass
class Detected:
    """What one image holds, and how long each stage took."""

    found: Described
    width: int
    """Pixels of the displayed image."""
    height: int
    """Pixels of the displayed image."""
    stages_ms: dict[str, float] = field(default_factory=dict)


class Service:
    """Own the engine, its queue and its metrics."""

    def __init__(self, engine: Engine, settings: config.ServeConfig, meter: ServiceMetrics) -> None:
        self.settings = settings
        self.meter = meter
        self.info = engine.info
        self.engine_name, self.precision = engine.name, engine.precision
        self._engine = engine
        self._decoders = ThreadPoolExecutor(settings.decode_threads, "decode")
        # Apart from those that decode: what is nearly done need not wait for what has just come.
        self._describers = ThreadPoolExecutor(settings.decode_threads, "answer")
        self._batcher = Batcher(self._run_batch, settings.max_batch, settings.batch_wait_ms / 1e3)
        self._in_work = 0
        self._failed = 0

    @property
    def ready(self) -> bool:
        """Tell whether the network answers; false after several failed batches in a row."""
        return self._failed < FAILED_BATCHES_IN_A_ROW

    async def detect(self, request: Request, options: Options) -> Detected:
        """Return what is in the image that a request carries; raises Problem or ImageError."""
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self.settings.request_timeout_s):
                with self._slot():
                    return await self._detect(request, options, started)
        except TimeoutError:
            raise ApiError(
                "timeout", f"no answer within {self.settings.request_timeout_s:g} s; the service is slow or overloaded"
            ) from None

    @contextmanager
    def _slot(self) -> Iterator[None]:
        most = self.settings.max_queued + self.settings.max_batch
        if self._in_work >= most:
            raise ApiError("overloaded", f"{most} requests are in work already; try again later", {"Retry-After": str(RETRY_AFTER_S)})
        self._in_work += 1
        try:
            yield
        finally:
            self._in_work -= 1

    async def _detect(self, request: Request, options: Options, started: float) -> Detected:
        # A body that stalls is the client's fault and gets its own answer, hence a little before the request's deadline.
        body = await read_body(request, int(self.settings.max_body_mb * 1e6), 0.9 * self.settings.request_timeout_s)
        received = time.perf_counter()
        loop = asyncio.get_running_loop()
        prepared = await loop.run_in_executor(self._decoders, self._prepare, request.headers.get("content-type", ""), body)
        decoded = time.perf_counter()
        found = await self._batcher.submit((prepared, options))
        answered = time.perf_counter()
        queued_s = max(answered - decoded - found.seconds, 0.0)
        described = await loop.run_in_executor(self._describers, describe, self.info, found.detections, prepared.place, options)
        stages_s = {"body": received - started, "decode": decoded - received, "queue": queued_s, "network": found.seconds}
        if len(self.info.tasks) > 1:
            stages_s["answer"] = time.perf_counter() - answered
        for stage, seconds in stages_s.items():
            self.meter.observe("yolor_stage_seconds", seconds, stage=stage)
        self.meter.observe("yolor_detections", len(described.detections))
        stages_ms = {stage: round(seconds * 1e3, 3) for stage, seconds in stages_s.items()}
        return Detected(described, prepared.place.width, prepared.place.height, stages_ms)

    def _prepare(self, content_type: str, body: bytes) -> Prepared:
        return self._engine.prepare(image_bytes(content_type, body))

    def _run_batch(self, images: Sequence[tuple[Prepared, Options]]) -> list[Found]:
        self.meter.observe("yolor_batch_images", len(images))
        self._failed += 1
        answers = self._engine.detect(images)
        self._failed = 0
        return answers

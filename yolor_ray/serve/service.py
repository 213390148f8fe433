"""Process one request through its stages (body, decode, queue, network, answer), and refuse requests beyond the limits.

All resources that a replica holds for requests are bounded: requests in progress, bytes per body, pixels per image and of all images,
tiles and seconds per request.
"""

import asyncio
import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from starlette.requests import Request

from yolor_ray import config
from yolor_ray.data.images.decode import decoded_pixels
from yolor_ray.data.images.header import read_header
from yolor_ray.inference.views import OpenImage, Tiling, View, open_image
from yolor_ray.serve.batcher import Batcher
from yolor_ray.serve.engine import DetectOptions, Engine, TimedDetections
from yolor_ray.serve.http.api_keys import ApiKeys
from yolor_ray.serve.http.body import image_bytes, read_body
from yolor_ray.serve.http.errors import ApiError
from yolor_ray.serve.metrics import ServiceMetrics
from yolor_ray.serve.pixel_budget import PixelBudget
from yolor_ray.serve.response import Json, detections_json, locate

RETRY_AFTER_S = 1
MAX_TILES = 256
"""Most tiles of one request: a batch of other requests passes between two batches of its tiles."""
SMALL_PIXELS = 4_000_000
"""Pixels up to which an image that is not cut into tiles is decoded at once: of these, no more than `decode_threads` are in memory."""
NO_PIXELS = np.zeros((0, 0, 3), np.uint8)
MAX_FAILED_BATCHES = 3
"""Consecutive failed batches after which a replica is no longer ready."""


@dataclass(frozen=True)
class _LargeImage:
    """Encoded image whose pixels count in the budget."""

    open: Callable[[], OpenImage]
    pixels: int
    is_tiled: bool
    """The pixels stay until the last tile is cut."""


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
        self._pixels = PixelBudget(int(settings.max_decoded_megapixels * 1e6))
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

    @contextlib.contextmanager
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
        opened = await loop.run_in_executor(self._decoders, self._open, request, body, options)
        async with contextlib.AsyncExitStack() as stack:
            if isinstance(opened, _LargeImage):
                await stack.enter_async_context(self._pixels.hold(opened.pixels))
                image = await loop.run_in_executor(self._decoders, opened.open)
                if not opened.is_tiled:
                    # Its view is small, and its pixels are gone.
                    await stack.aclose()
            else:
                image = opened
            decoded = time.perf_counter()
            found = await self._detect_views(image, options)
        detected = time.perf_counter()
        fields = await loop.run_in_executor(self._responders, self._fields, image, found, options)
        network_s = min(sum(result.seconds for _, result in found), detected - decoded)
        stages_s = {
            "body": received - started,
            "decode": decoded - received,
            "queue": detected - decoded - network_s,
            "network": network_s,
        }
        if len(self.info.tasks) > 1 or image.view_count > 1:
            stages_s["answer"] = time.perf_counter() - detected
        request.state.facts = {"body_bytes": len(body), "tiles": image.view_count, "detections": len(fields["detections"])}
        return self._answer(request, image, fields, stages_s)

    def _answer(self, request: Request, image: OpenImage, fields: Json, stages_s: Mapping[str, float]) -> Json:
        """Return the answer, count it, and note what the access log tells of it."""
        for stage, seconds in stages_s.items():
            self.metrics.observe("yolor_stage_seconds", seconds, stage=stage)
        self.metrics.observe("yolor_detections", len(fields["detections"]))
        for detection in fields["detections"]:
            self.metrics.observe("yolor_confidence", detection["confidence"])
        size = {"image": {"width": image.width, "height": image.height}}
        timing = {"timing_ms": {stage: round(seconds * 1e3, 3) for stage, seconds in stages_s.items()}}
        request.state.facts |= size | timing
        return {"model": {"name": self.info.name, "version": self.info.version}, **size, **fields, **timing}

    async def _detect_views(self, image: OpenImage, options: DetectOptions) -> list[tuple[View, TimedDetections]]:
        """Return the detections of each view; at most a batch of views is in memory, and in the queue, at a time."""
        loop = asyncio.get_running_loop()
        found: list[tuple[View, TimedDetections]] = []
        for start in range(0, image.view_count, self.settings.max_batch):
            count = min(self.settings.max_batch, image.view_count - start)
            views = await loop.run_in_executor(self._decoders, list, itertools.islice(image.views, count))
            self.metrics.set("yolor_queue_depth", self._batcher.waiting + len(views))
            results = await asyncio.gather(*(self._batcher.submit((view, options)) for view in views))
            # The pixels are not needed any more.
            found += [(replace(view, pixels=NO_PIXELS), result) for view, result in zip(views, results, strict=True)]
        return found

    def _fields(self, image: OpenImage, found: Sequence[tuple[View, TimedDetections]], options: DetectOptions) -> Json:
        located = locate(self.info, image, [(view, result.detections) for view, result in found], options)
        return detections_json(self.info, located, image, options)

    def _open(self, request: Request, body: bytes, options: DetectOptions) -> "OpenImage | _LargeImage":
        """Decode the image of a request, unless its pixels count in the budget."""
        data = image_bytes(request.headers.get("content-type", ""), body)
        header = read_header(data)
        max_pixels = int(self.settings.max_megapixels * 1e6)
        tiling = Tiling(options.tile, options.overlap, with_whole="classify" in self.info.tasks and options.labels)
        open_ = functools.partial(open_image, data, self.info.image_px, tiling, max_pixels=max_pixels)
        # An image over the limit is refused without decoding.
        if header.width * header.height > max_pixels:
            return open_()
        tile_count = len(tiling.tiles(header.width, header.height))
        if tile_count > MAX_TILES:
            advice = "send a smaller image, or ask for larger tiles"
            raise ApiError("too_many_tiles", f"found {tile_count} tiles, expected at most {MAX_TILES}: {advice}")
        if self.keys is not None:
            self.keys.charge_pixels(request.state.api_key, header.width * header.height)
        pixels = decoded_pixels(header, self.info.image_px if tile_count == 1 else None)
        return _LargeImage(open_, pixels, tile_count > 1) if tile_count > 1 or pixels > SMALL_PIXELS else open_()

    def _detect_batch(self, images: Sequence[tuple[View, DetectOptions]]) -> list[TimedDetections]:
        self.metrics.observe("yolor_batch_images", len(images))
        self.metrics.observe("yolor_batch_fill", len(images) / self.settings.max_batch)
        self.metrics.set("yolor_queue_depth", self._batcher.waiting)
        self._failed_batches += 1
        results = self._engine.detect(images)
        self._failed_batches = 0
        return results

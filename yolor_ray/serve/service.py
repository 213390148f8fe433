"""Process images through their stages (body, decode, queue, network, answer), and refuse requests beyond the limits.

All resources that a replica holds for requests are bounded: images in work, bytes per body, pixels per image and of all images, tiles per
image and seconds per request.
"""

import asyncio
import contextlib
import functools
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import ParamSpec, TypeAlias, TypeVar

import numpy as np
from starlette.requests import Request

from yolor_ray import config
from yolor_ray.config.serve import MAX_IMAGES
from yolor_ray.data.images.decode import decoded_pixels
from yolor_ray.data.images.header import read_header
from yolor_ray.errors import ImageError
from yolor_ray.inference.views import OpenImage, Tiling, View, open_image
from yolor_ray.serve.batcher import Batcher
from yolor_ray.serve.engine import DetectOptions, Engine, TimedDetections
from yolor_ray.serve.http.api_keys import ApiKeys
from yolor_ray.serve.http.body import image_bytes, read_body
from yolor_ray.serve.http.errors import ApiError
from yolor_ray.serve.http.tracing import note_stages
from yolor_ray.serve.metrics import ServiceMetrics
from yolor_ray.serve.pixel_budget import PixelBudget
from yolor_ray.serve.response import Json, detections_json, locate

Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")
RETRY_AFTER_S = 1
MAX_TILES = 256
"""Most tiles of one image: a batch of other images passes between two batches of its tiles."""
SMALL_PIXELS = 4_000_000
"""Pixels up to which an image that is not cut into tiles is decoded at once: of these, no more than `decode_threads` are in memory."""
NO_PIXELS = np.zeros((0, 0, 3), np.uint8)
MAX_FAILED_BATCHES = 3
"""Consecutive failed batches after which a replica is no longer ready."""


@dataclass(frozen=True)
class ReceivedRequest:
    """Request whose body has arrived."""

    request: Request
    body: bytes
    body_s: float
    """Seconds until the body was complete."""


@dataclass(frozen=True)
class DetectedImage:
    """Answer to one image."""

    fields: Json
    """Response, without request id and model."""
    tiles: int

    @property
    def detections(self) -> int:
        """Return the number of objects."""
        return len(self.fields["detections"])


ImageResult: TypeAlias = DetectedImage | ApiError | ImageError


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
        self.model: Json = {"name": engine.info.name, "version": engine.info.version}
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

    def check_ready(self) -> None:
        """Raise ApiError unless the service is ready."""
        if not self.ready:
            raise ApiError("not_ready", "the network failed several times in a row; this replica is being replaced")

    @property
    def max_images(self) -> int:
        """Return the most images of one request: MAX_IMAGES, or all that the queue takes."""
        return min(MAX_IMAGES, self._max_in_work)

    @property
    def _max_in_work(self) -> int:
        return self.settings.max_queued + self.settings.max_batch

    async def detect(self, request: Request, options: DetectOptions) -> Json:
        """Return the response to a request with one image, without its request id; raises ApiError or ImageError."""
        async with self.receive(request) as received:
            read = functools.partial(image_bytes, request.headers.get("content-type", ""), received.body)
            detected = await self._detect(received, read, options)
            counts = {"body_bytes": len(received.body), "tiles": detected.tiles, "detections": detected.detections}
            request.state.facts = counts | {name: detected.fields[name] for name in ("image", "timing_ms")}
            return {"model": self.model, **detected.fields}

    async def detect_images(self, received: ReceivedRequest, images: Sequence[bytes], options: DetectOptions) -> list[ImageResult]:
        """Return the answer to each encoded image, or its error; raises ApiError if the queue cannot take all images.

        Args:
            received: request of the images, inside the block of `receive`.
            images: one image or more.
            options: options of all images.
        """
        # The request itself holds the place of its first image.
        with self._slots(len(images) - 1):
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._detect_or_fail(received, data, options)) for data in images]
            except ExceptionGroup as failures:
                raise failures.exceptions[0] from None
        results = [task.result() for task in tasks]
        detected = [result for result in results if isinstance(result, DetectedImage)]
        received.request.state.facts = {
            "body_bytes": len(received.body),
            "images": len(images),
            "failed_images": len(images) - len(detected),
            "tiles": sum(image.tiles for image in detected),
            "detections": sum(image.detections for image in detected),
        }
        return results

    async def _detect_or_fail(self, received: ReceivedRequest, data: bytes, options: DetectOptions) -> ImageResult:
        try:
            return await self._detect(received, lambda: data, options)
        except (ApiError, ImageError) as error:
            return error

    @contextlib.asynccontextmanager
    async def receive(self, request: Request) -> AsyncIterator[ReceivedRequest]:
        """Read the body of a request, and hold a place in the queue inside the block, which ends at the time limit; raises ApiError."""
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self.settings.request_timeout_s):
                with self._slots(1):
                    # A stalled body is the client's fault and has an error code of its own, hence a timeout a little before the request's.
                    body = await read_body(request, int(self.settings.max_body_mb * 1e6), 0.9 * self.settings.request_timeout_s)
                    note_stages(request, body=(started, time.perf_counter()))
                    yield ReceivedRequest(request, body, time.perf_counter() - started)
        except TimeoutError:
            raise ApiError(
                "timeout", f"no answer within {self.settings.request_timeout_s:g} s; the service is slow or overloaded"
            ) from None

    async def in_decoder(self, function: Callable[Arguments, Value], *args: Arguments.args, **options: Arguments.kwargs) -> Value:
        """Return the result of a function that runs in a thread for bodies and images."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, functools.partial(function, *args, **options))

    @contextlib.contextmanager
    def _slots(self, count: int) -> Iterator[None]:
        """Hold places of the queue, one for each image."""
        if self._in_progress + count > self._max_in_work:
            found = f"{self._in_progress} images in work and a request with {count} more"
            raise ApiError(
                "overloaded", f"found {found}, expected at most {self._max_in_work}; try again later", {"Retry-After": str(RETRY_AFTER_S)}
            )
        self._count_in_progress(count)
        try:
            yield
        finally:
            self._count_in_progress(-count)

    def _count_in_progress(self, more: int) -> None:
        self._in_progress += more
        self.metrics.set("yolor_in_flight", self._in_progress)

    async def _detect(self, received: ReceivedRequest, read: Callable[[], bytes], options: DetectOptions) -> DetectedImage:
        """Return the answer to one image; `read` returns the encoded image."""
        started = time.perf_counter()
        opened = await self.in_decoder(self._open, received.request, read, options)
        async with contextlib.AsyncExitStack() as stack:
            if isinstance(opened, _LargeImage):
                await stack.enter_async_context(self._pixels.hold(opened.pixels))
                image = await self.in_decoder(opened.open)
                if not opened.is_tiled:
                    # Its view is small, and its pixels are gone.
                    await stack.aclose()
            else:
                image = opened
            decoded = time.perf_counter()
            found = await self._detect_views(image, options)
        detected = time.perf_counter()
        fields = await asyncio.get_running_loop().run_in_executor(self._responders, self._fields, image, found, options)
        network_s = min(sum(result.seconds for _, result in found), detected - decoded)
        stages_s = {
            "body": received.body_s,
            "decode": decoded - started,
            "queue": detected - decoded - network_s,
            "network": network_s,
        }
        if len(self.info.tasks) > 1 or image.view_count > 1:
            stages_s["answer"] = time.perf_counter() - detected
        began = detected - network_s
        spans = {"decode": (started, decoded), "queue": (decoded, began), "network": (began, detected)}
        note_stages(received.request, **spans, answer=(detected, time.perf_counter()))
        return DetectedImage(self._answer(image, fields, stages_s), image.view_count)

    def _answer(self, image: OpenImage, fields: Json, stages_s: Mapping[str, float]) -> Json:
        """Return the answer to one image, and count it."""
        for stage, seconds in stages_s.items():
            self.metrics.observe("yolor_stage_seconds", seconds, stage=stage)
        self.metrics.observe("yolor_detections", len(fields["detections"]))
        for detection in fields["detections"]:
            self.metrics.observe("yolor_confidence", detection["confidence"])
        size = {"image": {"width": image.width, "height": image.height}}
        timing = {"timing_ms": {stage: round(seconds * 1e3, 3) for stage, seconds in stages_s.items()}}
        return {**size, **fields, **timing}

    async def _detect_views(self, image: OpenImage, options: DetectOptions) -> list[tuple[View, TimedDetections]]:
        """Return the detections of each view; at most a batch of views is in memory, and in the queue, at a time."""
        found: list[tuple[View, TimedDetections]] = []
        for start in range(0, image.view_count, self.settings.max_batch):
            count = min(self.settings.max_batch, image.view_count - start)
            views = await self.in_decoder(list, itertools.islice(image.views, count))
            submitted = [self._batcher.submit((view, options)) for view in views]
            self.metrics.set("yolor_queue_depth", self._batcher.waiting)
            results = await asyncio.gather(*submitted)
            # The pixels are not needed any more.
            found += [(replace(view, pixels=NO_PIXELS), result) for view, result in zip(views, results, strict=True)]
        return found

    def _fields(self, image: OpenImage, found: Sequence[tuple[View, TimedDetections]], options: DetectOptions) -> Json:
        located = locate(self.info, image, [(view, result.detections) for view, result in found], options)
        return detections_json(self.info, located, image, options)

    def _open(self, request: Request, read: Callable[[], bytes], options: DetectOptions) -> "OpenImage | _LargeImage":
        """Decode the image of a request, unless its pixels count in the budget."""
        data = read()
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

"""Process images through their stages (body, decode, queue, network, answer), and refuse requests beyond the limits.

All resources that a replica holds for requests are bounded: images in work, bytes per body, pixels per image and of all images, tiles per
image and seconds per request.
"""

import asyncio
import contextlib
import functools
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import ParamSpec, TypeVar

import numpy as np
from starlette.requests import Request

from yolor_ray import config
from yolor_ray.config.serve import MAX_IMAGES
from yolor_ray.errors import ImageError
from yolor_ray.inference.views import OpenImage, View
from yolor_ray.serve.batcher import Batcher
from yolor_ray.serve.catalog.catalog import Catalog, Loader
from yolor_ray.serve.catalog.named_model import NamedModel
from yolor_ray.serve.engine import DetectOptions, Engine, TimedDetections
from yolor_ray.serve.http.api_keys import ApiKeys
from yolor_ray.serve.http.body import image_bytes, read_body, time_limit_s, while_connected
from yolor_ray.serve.http.errors import ApiError, overloaded
from yolor_ray.serve.http.tracing import note_stages
from yolor_ray.serve.metrics import ServiceMetrics
from yolor_ray.serve.pixel_budget import PixelBudget
from yolor_ray.serve.requests import DetectedImage, ImageResult, LargeImage, ReceivedRequest, open_received
from yolor_ray.serve.response import Json, detections_json, locate
from yolor_ray.serve.rollout.models import Health, ImageBatcher, Model, Models

Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")
NO_PIXELS = np.zeros((0, 0, 3), np.uint8)


class Service:
    """Engines of one replica with their queue and their metrics."""

    def __init__(
        self, engine: Engine, settings: config.ServeConfig, metrics: ServiceMetrics, release: str = "", loader: Loader | None = None
    ) -> None:
        """Answer requests with an engine, and with those that requests load.

        Args:
            engine: engine of the default model.
            settings: settings of the service.
            metrics: metrics of the replica.
            release: name of the engine's version in the release folder; empty without one.
            loader: loads the models of a list, of which `engine` is one, and their versions; None without a list.
        """
        self.settings = settings
        self.metrics = metrics
        self.keys = ApiKeys(settings.api_keys) if settings.api_keys else None
        if self.keys:
            self.keys.keep_fresh()
        self._decoders = ThreadPoolExecutor(settings.decode_threads, "decode")
        # A pool of their own, so that responses do not wait behind the decoding of new requests.
        self._responders = ThreadPoolExecutor(settings.decode_threads, "answer")
        # One thread for all models: they take no more cores than one, and two versions are timed under the same conditions.
        self._network = ThreadPoolExecutor(1, "network")
        self._pixels = PixelBudget(int(settings.max_decoded_megapixels * 1e6))
        self._in_progress = 0
        self.compare_at_s = 0.0
        """Time of `time.monotonic` from which a rollout may compare two versions on an image."""
        self.models = Models(self.add_model(engine, release))
        self.catalog = Catalog(self.models, loader, self, settings.max_model_mb * 1e6, max(settings.places // 2, 1))

    def add_model(self, engine: Engine, release: str = "") -> Model:
        """Return the model of an engine, with a queue of its own; requests go to the model when `models` chooses it."""
        # The batcher knows the engine and not the model: without a cycle, the memory of an old version is free at once.
        health = Health()
        process = functools.partial(self._detect_batch, engine, health)
        batcher: ImageBatcher = Batcher(process, self.settings.max_batch, self.settings.batch_wait_ms / 1e3, self._network)
        return Model(engine, batcher, health, release)

    def run_alone(self, function: Callable[Arguments, Value], *args: Arguments.args, **options: Arguments.kwargs) -> Value:
        """Return the result of a function that runs between two batches, in the thread of the network; not for the event loop."""
        return self._network.submit(function, *args, **options).result()

    @property
    def ready(self) -> bool:
        """Return True unless the engine of the default model is broken."""
        return not self.models.current.health.is_broken

    def check_ready(self) -> None:
        """Raise ApiError unless the service is ready."""
        if not self.ready:
            raise ApiError("not_ready", "the network failed several times in a row; this replica is being replaced")

    @property
    def max_images(self) -> int:
        """Return the most images of one request: MAX_IMAGES, or all that the queue takes."""
        return min(MAX_IMAGES, self.settings.places)

    async def detect(self, request: Request, options: DetectOptions, name: str | None = None) -> Json:
        """Return the response of a model to a request with one image, without its request id; raises ApiError or ImageError.

        Args:
            request: request whose body has not been read.
            options: options of the image.
            name: name of the model; None for the default.
        """
        async with self.receive(request, name) as received:
            read = functools.partial(image_bytes, request.headers.get("content-type", ""), received.body)
            detected = await self._answer_of_model(received, options, lambda: self._detect(received, read, options))
            counts = {"body_bytes": len(received.body), "tiles": detected.tiles, "detections": detected.detections}
            request.state.facts = counts | {name: detected.fields[name] for name in ("image", "timing_ms")}
            return {"model": received.model.identity, **detected.fields}

    async def detect_images(self, received: ReceivedRequest, images: Sequence[bytes], options: DetectOptions) -> list[ImageResult]:
        """Return the answer to each encoded image, or its error; raises ApiError if the queue cannot take all images.

        Args:
            received: request of the images, inside the block of `receive`.
            images: one image or more.
            options: options of all images.
        """
        # The request itself holds the place of its first image.
        with self._slots(received.named, len(images) - 1):
            results = await self._answer_of_model(received, options, lambda: self._detect_all(received, images, options))
        detected = [result for result in results if isinstance(result, DetectedImage)]
        received.request.state.facts = {
            "body_bytes": len(received.body),
            "images": len(images),
            "failed_images": len(images) - len(detected),
            "tiles": sum(image.tiles for image in detected),
            "detections": sum(image.detections for image in detected),
        }
        return results

    async def _answer_of_model(self, received: ReceivedRequest, options: DetectOptions, answer: Callable[[], Awaitable[Value]]) -> Value:
        """Return the answer of the request's model; where a candidate fails, reject the candidate, and return that of the model before."""
        received.choose(options)
        try:
            result = await answer()
        except (ApiError, ImageError):
            raise
        except Exception as error:
            if received.model is received.models.stable:
                raise
            received.models.drop(received.model, f"found {type(error).__name__}: {error} in a request, expected an answer")
            # A request that names the candidate gets no answer of another version.
            received.choose(options)
            received.is_repeated = True
            result = await answer()
        received.request.state.model = received.model.identity
        self.metrics.count("yolor_version_requests", model=received.named.name, version=received.model.label)
        return result

    async def _detect_all(self, received: ReceivedRequest, images: Sequence[bytes], options: DetectOptions) -> list[ImageResult]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._detect_or_fail(received, data, options)) for data in images]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _detect_or_fail(self, received: ReceivedRequest, data: bytes, options: DetectOptions) -> ImageResult:
        try:
            return await self._detect(received, lambda: data, options)
        except (ApiError, ImageError) as error:
            return error

    @contextlib.asynccontextmanager
    async def receive(self, request: Request, name: str | None = None) -> AsyncIterator[ReceivedRequest]:
        """Read the body of a request, load its model, and hold a place in the queue inside the block; raises ApiError.

        Args:
            request: request whose body has not been read; its time limit counts for the block, too.
            name: name of the model; None for the default.
        """
        named = self.catalog.find(name)
        request.state.model = named.identity
        started, limit_s = time.perf_counter(), time_limit_s(request, self.settings.request_timeout_s)
        wait_s = self.catalog.seconds_of_work
        if wait_s > limit_s:
            found = f"{self._in_progress} images in work, which take about {wait_s:.1f} s, expected an answer within {limit_s:g} s"
            raise overloaded(found)
        try:
            async with asyncio.timeout(limit_s):
                with self._slots(named, 1):
                    # A stalled body is the client's fault and has an error code of its own, hence a timeout a little before the request's.
                    body = await read_body(request, int(self.settings.max_body_mb * 1e6), 0.9 * limit_s)
                    arrived = time.perf_counter()
                    note_stages(request, body=(started, arrived))
                    async with while_connected(request):
                        is_loaded = named.models is not None
                        models = await self.catalog.load(named)
                        load_s = 0.0 if is_loaded else time.perf_counter() - arrived
                        if load_s:
                            note_stages(request, load=(arrived, arrived + load_s))
                        yield ReceivedRequest(request, body, arrived - started, load_s, named, models, models.stable)
        except TimeoutError:
            raise named.timeout(limit_s) from None

    async def in_decoder(self, function: Callable[Arguments, Value], *args: Arguments.args, **options: Arguments.kwargs) -> Value:
        """Return the result of a function that runs in a thread for bodies and images."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, functools.partial(function, *args, **options))

    @contextlib.contextmanager
    def _slots(self, named: NamedModel, count: int) -> Iterator[None]:
        """Hold places of the queue for a model, one for each image."""
        if self._in_progress + count > self.settings.places:
            raise overloaded(f"{self._in_progress} images in work and a request with {count} more, expected at most {self.settings.places}")
        self._count_in_progress(count)
        try:
            with self.catalog.hold(named, count):
                yield
        finally:
            self._count_in_progress(-count)

    def _count_in_progress(self, more: int) -> None:
        self._in_progress += more
        self.metrics.set("yolor_in_flight", self._in_progress)
        # The images of clients that have left do not wait any more, and there may be no further batch.
        self.metrics.set("yolor_queue_depth", self.catalog.waiting)

    async def _detect(self, received: ReceivedRequest, read: Callable[[], bytes], options: DetectOptions) -> DetectedImage:
        """Return the answer to one image; `read` returns the encoded image."""
        started = time.perf_counter()
        opened = await self.in_decoder(open_received, received, read, options, self.settings, self.keys)
        async with contextlib.AsyncExitStack() as stack:
            if isinstance(opened, LargeImage):
                await stack.enter_async_context(self._pixels.hold(opened.pixels))
                image = await self.in_decoder(opened.open)
                if not opened.is_tiled:
                    # Its view is small, and its pixels are gone.
                    await stack.aclose()
            else:
                image = opened
            decoded = time.perf_counter()
            found = await self._detect_views(received.model, image, options)
        detected = time.perf_counter()
        answer = functools.partial(self._fields, received.model, image, found, options)
        # Without masks, the boxes of one view take less time than the way to a thread and back.
        is_long = len(found) > 1 or found[0][1].detections.coefficients is not None
        fields = await asyncio.get_running_loop().run_in_executor(self._responders, answer) if is_long else answer()
        network_s = min(sum(result.seconds for _, result in found), detected - decoded)
        stages_s = {
            "body": received.body_s,
            **({"load": received.load_s} if received.load_s else {}),
            "decode": decoded - started,
            "queue": detected - decoded - network_s,
            "network": network_s,
        }
        if len(received.model.info.tasks) > 1 or image.view_count > 1:
            stages_s["answer"] = time.perf_counter() - detected
        if received.models.wants_sample:
            received.models.sample(await self.in_decoder(read), options)
        began = detected - network_s
        spans = {"decode": (started, decoded), "queue": (decoded, began), "network": (began, detected)}
        note_stages(received.request, **spans, answer=(detected, time.perf_counter()))
        return DetectedImage(self._answer(image, fields, stages_s), image.view_count)

    def _answer(self, image: OpenImage, fields: Json, stages_s: Mapping[str, float]) -> Json:
        """Return the answer to one image, and count it."""
        for stage, seconds in stages_s.items():
            self.metrics.observe("yolor_stage_seconds", seconds, stage=stage)
        self.metrics.observe("yolor_detections", len(fields["detections"]))
        self.metrics.observe("yolor_confidence", *(detection["confidence"] for detection in fields["detections"]))
        size = {"image": {"width": image.width, "height": image.height}}
        timing = {"timing_ms": {stage: round(seconds * 1e3, 3) for stage, seconds in stages_s.items()}}
        return {**size, **fields, **timing}

    async def _detect_views(self, model: Model, image: OpenImage, options: DetectOptions) -> list[tuple[View, TimedDetections]]:
        """Return the detections of each view; at most a batch of views is in memory, and in the queue, at a time."""
        found: list[tuple[View, TimedDetections]] = []
        for start in range(0, image.view_count, self.settings.max_batch):
            count = min(self.settings.max_batch, image.view_count - start)
            # The only view of an image is there already.
            views = [*image.views] if image.view_count == 1 else await self.in_decoder(list, itertools.islice(image.views, count))
            submitted = [model.batcher.submit((view, options)) for view in views]
            self.metrics.set("yolor_queue_depth", self.catalog.waiting)
            results = await asyncio.gather(*submitted)
            # The pixels are not needed any more.
            found += [(replace(view, pixels=NO_PIXELS), result) for view, result in zip(views, results, strict=True)]
        return found

    def _fields(self, model: Model, image: OpenImage, found: Sequence[tuple[View, TimedDetections]], options: DetectOptions) -> Json:
        located = locate(model.info, image, [(view, result.detections) for view, result in found], options)
        return detections_json(model.info, located, image, options)

    def _detect_batch(self, engine: Engine, health: Health, images: Sequence[tuple[View, DetectOptions]]) -> list[TimedDetections]:
        self.metrics.observe("yolor_batch_images", len(images))
        self.metrics.observe("yolor_batch_fill", len(images) / self.settings.max_batch)
        self.metrics.set("yolor_queue_depth", self.catalog.waiting)
        health.failed_batches += 1
        results = engine.detect(images)
        health.failed_batches = 0
        return results

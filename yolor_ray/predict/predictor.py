"""Run a fused network on encoded images: decode ahead in threads, predict in batches, map to pixels of each image.

Legend: B images of a batch, S side of the square network input in pixels.
"""

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch

from yolor_ray.config import PredictConfig
from yolor_ray.data.images.decode import decode
from yolor_ray.data.images.header import read_header
from yolor_ray.data.images.letterbox import Letterbox, letterbox
from yolor_ray.errors import ConfigError, ImageError
from yolor_ray.inference.detect import detect_within_memory
from yolor_ray.inference.engine_choice import choose_engine
from yolor_ray.inference.postprocess import ImageDetections, select_detections, to_image_detections
from yolor_ray.model.weights import load_weights
from yolor_ray.pack.annotations.faults import Fault
from yolor_ray.predict.sources import EncodedImage

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class PredictedImage:
    """Detections of one image."""

    name: str
    width: int
    """Pixels of the displayed image."""
    height: int
    """Pixels of the displayed image."""
    detections: ImageDetections


@dataclass(frozen=True)
class View:
    """An image in the network's input."""

    pixels: np.ndarray
    """(S, S, 3) uint8 RGB."""
    letterbox: Letterbox
    """Position in the input."""


@dataclass
class _OpenImage:
    """Decoded image, whose detections are being collected."""

    source: EncodedImage
    width: int
    height: int
    views: list[View]
    found: list[ImageDetections] = field(default_factory=list)


class Predictor:
    """One fused network in this process, with the engine that executes it."""

    def __init__(self, config: PredictConfig, threads: int) -> None:
        """Load the weights and choose the engine, with this number of compute threads.

        Raises:
            WeightsError, StorageError: the weights cannot be loaded.
            ConfigError: the engine does not run this network on this machine, or there is no GPU.

        """
        if config.cluster.gpu and not torch.cuda.is_available():
            raise ConfigError("cluster.gpu: found no CUDA device in this process, expected one; leave the flag out to use the CPU")
        torch.set_num_threads(threads)
        network, self.info = load_weights(config.weights)
        self._config = config
        self._device = torch.device("cuda" if config.cluster.gpu else "cpu")
        model = choose_engine(network.to(self._device), self.info, engine=config.engine, precision=config.precision)
        torch.set_num_threads(model.threads)
        self._predict = model.predict
        logger.info("event=engine_chosen engine=%s precision=%s threads=%d", model.engine, model.precision, threads)

    def predict(self, images: Iterable[EncodedImage]) -> Iterator[PredictedImage | Fault]:
        """Yield the detections of each image, or its fault, in order."""
        pending: deque[_OpenImage | Fault] = deque()
        with ThreadPoolExecutor(self._config.decode_threads, "decode") as decoders:
            opened = read_ahead(decoders, self._open, images, self._config.batch + self._config.decode_threads)
            views = ((image, view) for image in _noted(opened, pending) for view in image.views)
            while batch := list(itertools.islice(views, self._config.batch)):
                self._detect_batch(batch)
                yield from _finished(pending)
            yield from _finished(pending)

    def _open(self, image: EncodedImage) -> "_OpenImage | Fault":
        """Decode an image and fit it into the network's input."""
        if image.fault:
            return image.fault
        try:
            header = read_header(image.data)
            width, height = image.size or (header.width, header.height)
            pixels = decode(image.data, fit_px=self.info.image_px)
        except ImageError as error:
            return Fault("broken_image", f"{error.code}: {error}", image.url, image=image.name)
        return _OpenImage(image, width, height, [self._view(pixels, width, height)])

    def _view(self, pixels: np.ndarray, width: int, height: int) -> View:
        out = np.empty((self.info.image_px, self.info.image_px, 3), np.uint8)
        return View(out, letterbox(pixels, width, height, out))

    def _detect_batch(self, batch: list[tuple[_OpenImage, View]]) -> None:
        limits = {name: getattr(self._config, name) for name in ("confidence", "iou", "max_detections")}
        pixels = torch.from_numpy(np.stack([view.pixels for _, view in batch]))
        batch_detections = detect_within_memory(self._predict, pixels, self._device, **limits)
        for (image, view), input_detections in zip(batch, batch_detections, strict=True):
            detections = to_image_detections(input_detections, view.letterbox)
            # A box in the grey bars of the letterbox has no area inside the image.
            inside = np.all(detections.boxes_xyxy[:, 2:] > detections.boxes_xyxy[:, :2], axis=1)
            image.found.append(select_detections(detections, inside))


def read_ahead(pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Iterator[Result]:
    """Yield the results of a function in order, while at most `ahead` further calls run or wait in the pool."""
    iterator = iter(items)
    running = deque(pool.submit(function, item) for item in itertools.islice(iterator, ahead))
    try:
        while running:
            result = running.popleft().result()
            running.extend(pool.submit(function, item) for item in itertools.islice(iterator, 1))
            yield result
    finally:
        for future in running:
            future.cancel()


def _noted(opened: Iterable[_OpenImage | Fault], pending: deque[_OpenImage | Fault]) -> Iterator[_OpenImage]:
    """Yield the images, and append images and faults to `pending`."""
    for image in opened:
        pending.append(image)
        if isinstance(image, _OpenImage):
            yield image


def _finished(pending: deque[_OpenImage | Fault]) -> Iterator[PredictedImage | Fault]:
    """Take the images with all their detections, and faults, from the start of `pending`."""
    while pending:
        image = pending[0]
        if isinstance(image, Fault):
            yield image
        elif len(image.found) == len(image.views):
            yield PredictedImage(image.source.name, image.width, image.height, image.found[0])
        else:
            return
        pending.popleft()

"""Run a fused network on encoded images: decode ahead in threads, predict in batches, map to pixels of each image.

Legend: B images of a batch, S side of the square network input in pixels.
"""

import itertools
import logging
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from yolor_ray.config import PredictConfig
from yolor_ray.data.loading.read_ahead import read_ahead
from yolor_ray.errors import ConfigError, ImageError
from yolor_ray.inference.detect import detect_within_memory, least_confidences
from yolor_ray.inference.engine_choice import choose_engine
from yolor_ray.inference.models import load_model
from yolor_ray.inference.postprocess import ImageDetections, select_detections, to_image_detections
from yolor_ray.inference.tiles import Tile
from yolor_ray.inference.views import OpenImage, Tiling, View, merge_views, open_image
from yolor_ray.pack.annotations.faults import Fault
from yolor_ray.predict.sources import EncodedImage

TIMING_S = 0.5
"""Seconds of timing the engines: each worker times them before its first image."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PredictedImage:
    """Detections of one image."""

    name: str
    width: int
    """Pixels of the displayed image."""
    height: int
    """Pixels of the displayed image."""
    detections: ImageDetections


@dataclass
class _Collected:
    """Decoded image, whose detections are being collected."""

    source: EncodedImage
    image: OpenImage
    found: list[tuple[Tile | None, ImageDetections]] = field(default_factory=list)
    """Tile of each view, and the detections in pixels of the tile."""


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
        network, self.info = load_model(config.weights)
        self._config = config
        self._device = torch.device("cuda" if config.cluster.gpu else "cpu")
        network = network.to(self._device)
        model = choose_engine(network, self.info, engine=config.engine, precision=config.precision, budget_s=TIMING_S)
        torch.set_num_threads(model.threads)
        self._predict = model.predict
        self._tiling = Tiling(config.tile, config.overlap, with_whole="classify" in self.info.tasks)
        self._confidence = least_confidences(config.confidence, self.info, config.classes)
        logger.info("event=engine_chosen engine=%s precision=%s threads=%d", model.engine, model.precision, threads)

    def predict(self, images: Iterable[EncodedImage]) -> Iterator[PredictedImage | Fault]:
        """Yield the detections of each image, or its fault, in order."""
        pending: deque[_Collected | Fault] = deque()
        with ThreadPoolExecutor(self._config.decode_threads, "decode") as decoders:
            # Images that are to be tiled are decoded at full size, which may be half a gigabyte each.
            ahead = self._config.decode_threads + (0 if self._config.tile else self._config.batch)
            opened = read_ahead(decoders, self._open, images, ahead)
            views = ((image, view) for image in _noted(opened, pending) for view in image.image.views)
            while batch := list(itertools.islice(views, self._config.batch)):
                self._detect_batch(batch)
                yield from self._finished(pending)
            yield from self._finished(pending)

    def _open(self, image: EncodedImage) -> "_Collected | Fault":
        """Decode an image and cut it into views."""
        if image.fault:
            return image.fault
        try:
            return _Collected(image, open_image(image.data, self.info.image_px, self._tiling, size=image.size))
        except ImageError as error:
            return Fault("broken_image", f"{error.code}: {error}", image.url, image=image.name)

    def _detect_batch(self, batch: list[tuple[_Collected, View]]) -> None:
        limits = {"confidence": self._confidence, "iou": self._config.iou, "max_detections": self._config.max_detections}
        pixels = torch.from_numpy(np.stack([view.pixels for _, view in batch]))
        batch_detections = detect_within_memory(self._predict, pixels, self._device, **limits)
        for (image, view), input_detections in zip(batch, batch_detections, strict=True):
            detections = to_image_detections(input_detections, view.letterbox, self.info.keypoint_flags)
            # A box in the grey bars of the letterbox has no area inside the image.
            inside = np.all(detections.boxes_xyxy[:, 2:] > detections.boxes_xyxy[:, :2], axis=1)
            detections = select_detections(detections, inside)
            image.found.append((view.tile, detections))

    def _finished(self, pending: deque[_Collected | Fault]) -> Iterator[PredictedImage | Fault]:
        """Take the images with all their detections, and faults, from the start of `pending`."""
        while pending:
            image = pending[0]
            if isinstance(image, Fault):
                yield image
            elif len(image.found) == image.image.view_count:
                width, height = image.image.width, image.image.height
                iou, max_detections = self._config.iou, self._config.max_detections
                merged = merge_views(image.found, width, height, iou=iou, max_detections=max_detections)
                yield PredictedImage(image.source.name, width, height, merged)
            else:
                return
            pending.popleft()


def _noted(opened: Iterable[_Collected | Fault], pending: deque[_Collected | Fault]) -> Iterator[_Collected]:
    """Yield the images, and append images and faults to `pending`."""
    for image in opened:
        pending.append(image)
        if isinstance(image, _Collected):
            yield image

"""Run the network: encoded image in, detections in pixels of the network input out.

`prepare` may run in any number of threads; `detect` belongs to one thread at a time. Neither may run on the event loop.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from yolor_ray import config
from yolor_ray.data.images.decode import decode
from yolor_ray.data.images.header import read_header
from yolor_ray.data.images.letterbox import Letterbox, letterbox
from yolor_ray.inference import detect
from yolor_ray.inference.detect import Detections
from yolor_ray.inference.engine_choice import RunnableModel, choose_engine
from yolor_ray.model.weights import WeightsInfo, load_weights

log = logging.getLogger(__name__)

Choose = Callable[..., RunnableModel]
"""Takes what `fastest` takes."""


@dataclass(frozen=True)
class Options:
    """What one request asks for."""

    confidence: float
    """Least confidence of a returned box."""
    iou: float
    """Boxes of one class that overlap more than this are one object."""
    max_detections: int
    """Most boxes."""
    masks: bool = True
    """Whether to make masks; so for the others, where the network has learned them."""
    keypoints: bool = True
    labels: bool = True
    """Those of the image as a whole."""
    embeddings: bool = True


@dataclass(frozen=True)
class Prepared:
    """One image as the network sees it."""

    pixels: np.ndarray
    """(S, S, 3) uint8 RGB."""
    place: Letterbox
    """Where the displayed image lies in it."""


@dataclass(frozen=True)
class Found:
    """What was found in one image."""

    detections: Detections
    """In pixels of the network input; all that the request asked for and no more, and every box has an area inside the image."""
    seconds: float
    """Time of the forward pass and NMS that it was part of."""


class Engine(Protocol):
    """What the service asks of a network; tests pass their own."""

    info: WeightsInfo
    name: str
    """What runs the network."""
    precision: str
    """What it computes in."""

    def prepare(self, data: bytes) -> Prepared:
        """Decode one image; raises ImageError."""

    def detect(self, images: Sequence[tuple[Prepared, Options]]) -> list[Found]:
        """Return what is in each image."""


class LocalEngine:
    """Hold one folded network in this process, on a GPU if this replica has one."""

    def __init__(self, settings: config.ServeConfig, choose: Choose = choose_engine) -> None:
        """Load the weights, have the form that runs them chosen, and warm it up; raises WeightsError, StorageError or ConfigError."""
        torch.set_num_threads(settings.compute_threads)
        network, info = load_weights(settings.weights)
        self.info = replace(info, fused=True)
        self._device = torch.device("cuda" if settings.gpus_per_replica > 0 else "cpu")
        form = choose(network.to(self._device), info, engine=settings.engine, precision=settings.precision)
        self.name, self.precision = form.engine, str(form.precision)
        self._predictor = form.predict
        torch.set_num_threads(form.threads)
        log.info("event=engine name=%s precision=%s error=%.2g", form.engine, form.precision, form.error)
        self._max_pixels = int(settings.max_megapixels * 1e6)
        blank = self._place(np.full((info.image_px, info.image_px, 3), 114, np.uint8), info.image_px, info.image_px)
        usual = Options(settings.confidence, settings.iou, settings.max_detections)
        # cuDNN chooses its algorithms at the first batch of each size; on the CPU, the choice of the form has warmed up the rest.
        for count in sorted({1, settings.max_batch}) if self._device.type == "cuda" else [1]:
            self.detect([(blank, usual)] * count)

    def prepare(self, data: bytes) -> Prepared:
        """Decode one image and fit it into the network's square; raises ImageError."""
        header = read_header(data)
        pixels = decode(data, fit_px=self.info.image_px, max_pixels=self._max_pixels)
        return self._place(pixels, header.width, header.height)

    def detect(self, images: Sequence[tuple[Prepared, Options]]) -> list[Found]:
        """Return what is in each image; images that ask for the same IoU share a forward pass."""
        found: dict[int, Found] = {}
        for iou in {options.iou for _, options in images}:
            numbers = [number for number, (_, options) in enumerate(images) if options.iou == iou]
            found.update(zip(numbers, self._detect_alike([images[number] for number in numbers]), strict=True))
        return [found[number] for number in range(len(images))]

    def _place(self, pixels: np.ndarray, width: int, height: int) -> Prepared:
        out = np.empty((self.info.image_px, self.info.image_px, 3), np.uint8)
        return Prepared(out, letterbox(pixels, width, height, out))

    def _detect_alike(self, images: Sequence[tuple[Prepared, Options]]) -> list[Found]:
        # Greedy NMS never lets a weaker box remove a stronger one, so the laxest threshold serves all and each is cut after.
        started = time.perf_counter()
        batch = torch.from_numpy(np.stack([prepared.pixels for prepared, _ in images]))
        laxest = Options(
            confidence=min(options.confidence for _, options in images),
            iou=images[0][1].iou,
            max_detections=max(options.max_detections for _, options in images),
        )
        answers = self._predict(batch, laxest)
        seconds = time.perf_counter() - started
        return [_cut(answer, *image, seconds) for answer, image in zip(answers, images, strict=True)]

    def _predict(self, batch: torch.Tensor, limits: Options) -> list[Detections]:
        try:
            return detect.detect(
                self._predictor,
                batch,
                self._device,
                confidence=limits.confidence,
                iou=limits.iou,
                max_detections=limits.max_detections,
            )
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        torch.cuda.empty_cache()
        return [answer for half in batch.chunk(2) for answer in self._predict(half, limits)]


def _cut(answer: Detections, prepared: Prepared, options: Options, seconds: float) -> Found:
    boxes_xyxy = prepared.place.to_image(answer.boxes_xyxy.numpy())
    # A box that lies in the grey bars has no area left inside the image.
    inside = (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(axis=1)
    keep = torch.from_numpy(np.flatnonzero(inside & (answer.confidences.numpy() >= options.confidence))[: options.max_detections])
    of_objects = {name: getattr(answer, name) for name in ("boxes_xyxy", "confidences", "labels", *detect.OF_PREDICTIONS)}
    return Found(replace(answer, **{name: values[keep] for name, values in of_objects.items() if values is not None}), seconds)

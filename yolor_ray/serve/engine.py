"""Run the network of a replica: views of images in, detections in pixels of the network input out.

`detect` belongs to one thread at a time, and may not run on the event loop.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import numpy as np
import torch

from yolor_ray import config
from yolor_ray.config.serve import Confidence
from yolor_ray.data.images.decode import FILL
from yolor_ray.errors import ConfigError, WeightsError
from yolor_ray.inference import detect
from yolor_ray.inference.detect import Detections
from yolor_ray.inference.engine_choice import FASTEST, RunnableModel, choose_engine, scene_images
from yolor_ray.inference.models import load_model
from yolor_ray.inference.views import View, make_view
from yolor_ray.model.weights import WeightsInfo

logger = logging.getLogger(__name__)

EngineChooser = Callable[..., RunnableModel]
"""Has the parameters of `choose_engine`."""


@dataclass(frozen=True)
class DetectOptions:
    """Options of one request."""

    confidence: Confidence
    """Least confidence of a returned box; `best` takes that of the weights for each class."""
    iou: float
    """Boxes of one class that overlap more than this are one object."""
    max_detections: int
    """Most boxes."""
    classes: tuple[str, ...] = ()
    """Names of the only classes to detect, in any order; empty for all."""
    masks: bool = True
    """Return masks, if the network has learned the task segment."""
    keypoints: bool = True
    """Return keypoints, if the network has learned the task pose."""
    labels: bool = True
    """Return the labels of the whole image, if the network has learned the task classify."""
    embeddings: bool = True
    """Return embeddings, if the network has learned the task embed."""
    tile: int = 0
    """Side of the square tiles that larger images are cut into, pixels; 0 fits each image as a whole into the network's input."""
    overlap: float = 0.2
    """Share of a tile that its neighbour covers too."""
    release: str = ""
    """Version in the release folder that answers; empty for the one that the rollout chooses."""


@dataclass(frozen=True)
class TimedDetections:
    """Detections of one image, and the time that they took."""

    detections: Detections
    """In pixels of the network input, within the limits of the request; every box has an area inside the image."""
    seconds: float
    """Time of the forward pass and NMS of the image's batch."""


class Engine(Protocol):
    """Network as the service uses it; tests pass an engine of their own."""

    info: WeightsInfo
    name: str
    """Engine that executes the network: torch, onnxruntime or openvino."""
    precision: str
    """Precision of the arithmetic: float32 or bfloat16."""

    def detect(self, images: Sequence[tuple[View, DetectOptions]]) -> list[TimedDetections]:
        """Return the detections of each image."""


class LocalEngine:
    """One fused network in this process, on a GPU if the replica reserves one."""

    def __init__(self, settings: config.ServeConfig, choose: EngineChooser = choose_engine) -> None:
        """Load the weights, choose the engine, check its predictions and warm it up; raises WeightsError, StorageError or ConfigError."""
        torch.set_num_threads(settings.compute_threads)
        network, info = load_model(settings.weights)
        self.info = replace(info, fused=True)
        self._device = torch.device("cuda" if settings.gpus_per_replica > 0 else "cpu")
        model = choose(network.to(self._device), info, engine=settings.engine, precision=settings.precision)
        self.name, self.precision = model.engine, str(model.precision)
        self._predictor = model.predict
        torch.set_num_threads(model.threads)
        logger.info("event=engine_chosen engine=%s precision=%s max_error=%.2g", model.engine, model.precision, model.error)
        self._check_finite(settings)
        self._warm_up(settings)

    def _check_finite(self, settings: config.ServeConfig) -> None:
        """Raise WeightsError if predictions are not numbers: NMS would drop them, and every image would seem to be empty."""
        with torch.inference_mode():
            outputs = self._predictor(detect.to_input(torch.from_numpy(scene_images(self.info.image_px, 1)), self._device))
        broken = [name for name, values in outputs.items() if not values.isfinite().all()]
        if broken:
            found = f"{', '.join(broken)} with values that are not finite on a built-in scene"
            raise WeightsError(f"{settings.weights}: found {found}, expected numbers")

    def _warm_up(self, settings: config.ServeConfig) -> None:
        side = self.info.image_px
        blank = make_view(np.full((side, side, 3), FILL, np.uint8), side, side, side)
        options = DetectOptions(settings.confidence, settings.iou, settings.max_detections)
        # cuDNN chooses its algorithms at the first batch of each size; on the CPU, the choice of the engine has warmed up the rest.
        for count in sorted({1, settings.max_batch}) if self._device.type == "cuda" else [1]:
            self.detect([(blank, options)] * count)

    def detect(self, images: Sequence[tuple[View, DetectOptions]]) -> list[TimedDetections]:
        """Return the detections of each image; images with the same IoU threshold, classes and kind of confidence share a forward pass."""
        results: dict[int, TimedDetections] = {}
        kinds = [(options.iou, options.confidence == "best", frozenset(options.classes)) for _, options in images]
        for kind in set(kinds):
            indices = [index for index, other in enumerate(kinds) if other == kind]
            results.update(zip(indices, self._detect_same_kind([images[index] for index in indices]), strict=True))
        return [results[index] for index in range(len(images))]

    def _detect_same_kind(self, images: Sequence[tuple[View, DetectOptions]]) -> list[TimedDetections]:
        # In greedy NMS a weaker box never removes a stronger one. The most permissive limits thus serve all requests, and each
        # request's own limits are applied afterwards.
        started = time.perf_counter()
        batch = torch.from_numpy(np.stack([view.pixels for view, _ in images]))
        numbers = [options.confidence for _, options in images if options.confidence != "best"]
        limits = {
            "confidence": detect.least_confidences(min(numbers) if numbers else "best", self.info, images[0][1].classes),
            "iou": images[0][1].iou,
            "max_detections": max(options.max_detections for _, options in images),
        }
        batch_detections = detect.detect_within_memory(self._predictor, batch, self._device, **limits)
        seconds = time.perf_counter() - started
        return [
            TimedDetections(_apply_limits(detections, *image), seconds) for detections, image in zip(batch_detections, images, strict=True)
        ]


def load_version(settings: config.ServeConfig, url: str, name: str, engine: str | None = None) -> LocalEngine:
    """Return the engine of a released version, or of a model of a list; raises as `LocalEngine` does.

    Args:
        settings: settings of the service.
        url: weights of the version.
        name: name of the model, in place of that in the weights; all versions of a release folder share it.
        engine: engine of the version before, or of another model, which is taken where `settings` leave the choice;
            None measures all engines.
    """
    settings = replace(settings, weights=url, models="")
    try:
        loaded = LocalEngine(replace(settings, engine=cast(Any, engine)) if engine and settings.engine == FASTEST else settings)
    except ConfigError:
        if engine is None or settings.engine != FASTEST:
            raise
        # That engine does not run this network.
        loaded = LocalEngine(settings)
    loaded.info = replace(loaded.info, name=name)
    return loaded


def _apply_limits(detections: Detections, view: View, options: DetectOptions) -> Detections:
    """Keep the detections that lie in the image and within the limits of the request."""
    boxes_xyxy = view.letterbox.to_image(detections.boxes_xyxy.numpy())
    # A box in the grey bars has no area left inside the image.
    inside = (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(axis=1)
    # The confidences of `best` are those of the selection.
    confident = options.confidence == "best" or detections.confidences.numpy() >= options.confidence
    keep = torch.from_numpy(np.flatnonzero(inside & confident)[: options.max_detections])
    rows = {name: getattr(detections, name) for name in ("boxes_xyxy", "confidences", "labels", *detect.PREDICTION_OUTPUTS)}
    return replace(detections, **{name: values[keep] for name, values in rows.items() if values is not None})

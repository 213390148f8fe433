"""Detection from Python: `Detector(weights)(image)` returns the objects of an image in pixels of the displayed image.

The forward pass, the suppression and the transforms are those of evaluation and serving, so the same image gives the same objects.
"""

import functools
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, overload

import numpy as np
import torch
from PIL import Image

from yolor_ray.config.network import Precision
from yolor_ray.config.serve import Confidence, ServeConfig, check_limits
from yolor_ray.data.images.decode import decode, pixels_of
from yolor_ray.data.images.header import read_header
from yolor_ray.data.images.letterbox import Letterbox, letterbox
from yolor_ray.data.rle import decode_mask
from yolor_ray.errors import ConfigError, ImageError, StorageError
from yolor_ray.inference import detect
from yolor_ray.inference.engine_choice import FASTEST, choose_engine
from yolor_ray.inference.models import load_model
from yolor_ray.inference.postprocess import select_detections, to_image_detections
from yolor_ray.io import storage
from yolor_ray.io.redact import redact
from yolor_ray.model.network import Yolor

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | np.ndarray | Image.Image
"""A path, an `s3://`, `http://` or `https://` URL, the bytes of an image file, (H, W, 3) uint8 RGB, (H, W) uint8 grey,
(H, W, 4) uint8 RGBA, or a PIL image."""
Images: TypeAlias = list[ImageSource] | tuple[ImageSource, ...]
HTTP_TIMEOUT_S = 30.0
MAX_HTTP_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Result:
    """The objects of one image, highest confidence first. D objects, J keypoints, E numbers of an embedding."""

    width: int
    """Pixels of the displayed image."""
    height: int
    """Pixels of the displayed image."""
    boxes_xyxy: np.ndarray
    """(D, 4) float64: left, top, right, bottom in pixels of the displayed image."""
    classes: tuple[str, ...]
    """D class names."""
    class_ids: np.ndarray
    """(D,) int64: index into `Detector.classes`."""
    confidences: np.ndarray
    """(D,) float64, 0 to 1."""
    masks: tuple[bytes, ...] | None = None
    """D compressed run lengths (COCO's `counts`; size = [height, width]); None without the task segment. See `mask`."""
    keypoints: np.ndarray | None = None
    """(D, J, 3) float64: x, y in pixels, and confidence 0 to 1, which is 0 for keypoints that the class does not have; None without the
    task pose."""
    keypoint_names: tuple[str, ...] = ()
    """J names, of the keypoints of all classes together; see `Detector.class_keypoints`."""
    embeddings: np.ndarray | None = None
    """(D, E) float32 of length 1: the dot product of two is their similarity; None without the task embed."""
    image_labels: dict[str, float] | None = None
    """Probability of each label of the whole image; None without the task classify."""

    def __len__(self) -> int:
        """Return the number of objects."""
        return len(self.classes)

    def mask(self, index: int) -> np.ndarray:
        """Return (height, width) bool: the pixels of an object.

        Raises:
            ConfigError: the network has not learned the task segment.
        """
        if self.masks is None:
            raise ConfigError("mask: found a network without the task segment, expected one that was trained with it")
        return decode_mask(self.masks[index], self.width, self.height)


class Detector:
    """A fused network in this process."""

    def __init__(
        self, weights: str | os.PathLike[str], *, engine: str = "", precision: Precision = "float32", device: str = "", batch: int = 16
    ) -> None:
        """Load weights and fuse them.

        Args:
            weights: path or URL of a weights folder, fused or not, or of an export.
            engine: `torch`, `onnxruntime`, `openvino`, or `fastest`, which times those that are installed. Empty takes torch, or the engine
                that an export was made for.
            precision: `float32` or `bfloat16`.
            device: a torch device such as `cuda:0` or `cpu`; empty takes the GPU where there is one. An export computes on the CPU.
            batch: images of a list that share a forward pass.

        Raises:
            WeightsError: the folder holds no weights, they do not verify, or the graph of an export does not fit its metadata.
            StorageError: the URL cannot be read.
            ConfigError: the engine does not run this network on this machine, or is not that of the export.
        """
        network, self._info = load_model(os.fspath(weights))
        runs_on_gpu = isinstance(network, Yolor) and torch.cuda.is_available()
        self._device = torch.device(device or ("cuda" if runs_on_gpu else "cpu"))
        engine = engine or ("torch" if isinstance(network, Yolor) else FASTEST)
        self._engine = choose_engine(network.to(self._device), self._info, engine=engine, precision=precision)
        self._batch = batch

    @classmethod
    def from_weights(cls, url: str, **options: Any) -> "Detector":
        """Return a detector of the weights at a path or URL; the options are those of the constructor."""
        return cls(url, **options)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of object classes by id."""
        return self._info.classes

    @property
    def thresholds(self) -> dict[str, float]:
        """Confidence with the best F1 score on the validation set by class name; absent for classes without a true positive there."""
        return dict(self._info.thresholds)

    @property
    def class_keypoints(self) -> dict[str, tuple[str, ...]]:
        """Names of the keypoints of each class that has some."""
        return dict(self._info.class_keypoints)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of the network."""
        return self._info.tasks

    @overload
    def __call__(
        self, image: Images, *, confidence: Confidence = ..., iou: float = ..., max_detections: int = ..., classes: Collection[str] = ...
    ) -> list[Result]: ...

    @overload
    def __call__(
        self,
        image: ImageSource,
        *,
        confidence: Confidence = ...,
        iou: float = ...,
        max_detections: int = ...,
        classes: Collection[str] = (),
    ) -> Result: ...

    def __call__(
        self,
        image: ImageSource | Images,
        *,
        confidence: Confidence = ServeConfig.confidence,
        iou: float = ServeConfig.iou,
        max_detections: int = ServeConfig.max_detections,
        classes: Collection[str] = (),
    ) -> Result | list[Result]:
        """Return the objects of an image, or of each image of a list.

        Args:
            image: see `ImageSource`; a list or a tuple is processed in batches.
            confidence: least confidence of a returned object, 0 to 1; `best` takes that of `thresholds` for each class, or else 0.25.
            iou: boxes of one class that overlap more than this are one object, over 0, up to 1.
            max_detections: most objects per image.
            classes: names of the only classes to detect; empty for all.

        Raises:
            ImageError: an image cannot be decoded; the message names the image.
            StorageError: a path or URL cannot be read.
            ConfigError: a limit is out of range, or the network has not learned a class.
        """
        check_limits(confidence, iou, max_detections)
        # A name is a collection of letters, too.
        classes = [classes] if isinstance(classes, str) else classes
        detect.check_classes(classes, self._info)
        least = detect.least_confidences(confidence, self._info, classes)
        find = functools.partial(self._detect, confidence=least, iou=iou, max_detections=max_detections)
        if isinstance(image, list | tuple):
            return [result for start in range(0, len(image), self._batch) for result in find(image[start : start + self._batch])]
        return find([image])[0]

    def _detect(self, images: Sequence[ImageSource], **limits: Any) -> list[Result]:
        side = self._info.image_px
        pixels = np.empty((len(images), side, side, 3), np.uint8)
        letterboxes = [_letterboxed(image, out) for image, out in zip(images, pixels, strict=True)]
        detections = detect.detect(self._engine.predict, torch.from_numpy(pixels), self._device, **limits)
        return [self._result(image, box) for image, box in zip(detections, letterboxes, strict=True)]

    def _result(self, input_detections: detect.Detections, box: Letterbox) -> Result:
        detections = to_image_detections(input_detections, box, self._info.keypoint_flags)
        boxes_xyxy, labels = detections.boxes_xyxy, detections.image_labels
        # A box in the grey bars of the letterbox has no area inside the image.
        detections = select_detections(detections, np.all(boxes_xyxy[:, 2:] > boxes_xyxy[:, :2], axis=1))
        return Result(
            width=box.width,
            height=box.height,
            boxes_xyxy=detections.boxes_xyxy,
            classes=tuple(self._info.classes[label] for label in detections.labels),
            class_ids=detections.labels,
            confidences=detections.confidences,
            masks=detections.masks,
            keypoints=detections.keypoints,
            keypoint_names=() if detections.keypoints is None else self._info.keypoint_names,
            embeddings=detections.embeddings,
            image_labels=None if labels is None else dict(zip(self._info.image_classes, labels.tolist(), strict=True)),
        )


def _letterboxed(image: ImageSource, out: np.ndarray) -> Letterbox:
    """Fit an image into `out`, (S, S, 3) uint8."""
    if isinstance(image, np.ndarray | Image.Image):
        pixels = pixels_of(image)
        return letterbox(pixels, pixels.shape[1], pixels.shape[0], out)
    name = f"{len(image)} bytes" if isinstance(image, bytes) else os.fspath(image)
    data = image if isinstance(image, bytes) else _read(name)
    try:
        header = read_header(data)
        return letterbox(decode(data, fit_px=len(out)), header.width, header.height, out)
    except ImageError as error:
        raise ImageError(error.code, redact(f"{name}: {error}")) from error


def _read(url: str) -> bytes:
    if not url.startswith(("http://", "https://")):
        return storage.read_bytes(url)
    try:
        with urllib.request.urlopen(url, timeout=HTTP_TIMEOUT_S) as response:
            data: bytes = response.read(MAX_HTTP_BYTES + 1)
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        # The message of the cause may repeat credentials of the URL.
        raise StorageError(redact(f"{url}: cannot read it: {error}")) from None
    if len(data) > MAX_HTTP_BYTES:
        raise StorageError(f"{redact(url)}: found more than {MAX_HTTP_BYTES} bytes, expected an image")
    return data

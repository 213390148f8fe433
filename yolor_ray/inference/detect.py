"""Run a network on images and return detections.

Legend: B images, S side of the square input in pixels, D detections, J keypoints, E numbers of an embedding, C prototypes, M image labels.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from yolor_ray import boxes
from yolor_ray.config.serve import FALLBACK_CONFIDENCE, Confidence
from yolor_ray.errors import check
from yolor_ray.inference.runtimes.torch_runtime import DecodedYolor, Predictor
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo


@dataclass(frozen=True)
class Detections:
    """Detections of one image, best first, on the CPU; outputs of tasks that the network has not learned are None."""

    boxes_xyxy: Float[Tensor, "D 4"]
    """Pixels of the network input."""
    confidences: Float[Tensor, "D"]
    """0 to 1."""
    labels: Int[Tensor, "D"]
    """Index into the classes."""
    keypoints: Float[Tensor, "D J 3"] | None = None
    """x and y in pixels of the network input, and the probability that the keypoint is visible."""
    embeddings: Float[Tensor, "D E"] | None = None
    """Unit vectors."""
    coefficients: Float[Tensor, "D C"] | None = None
    """Weights of the prototypes: their weighted sum, cut to the box, is the logits of the mask."""
    prototypes: Float[Tensor, "C _ _"] | None = None
    """Prototypes of the image's masks; their sides are a quarter of the input's."""
    image_labels: Float[Tensor, "M"] | None = None
    """Probability of each label of the whole image."""


PREDICTION_OUTPUTS = ("keypoints", "embeddings", "coefficients")
"""Optional outputs with one row per prediction."""
IMAGE_OUTPUTS = ("prototypes", "image_labels")
"""Optional outputs of the whole image."""


def to_input(images: UInt8[Tensor, "B S S 3"], device: torch.device) -> Float[Tensor, "B 3 S S"]:
    """Return RGB bytes as 0..1 channels-last floats on the device."""
    return images.to(device, non_blocking=True).permute(0, 3, 1, 2).div(255)


def least_confidences(confidence: Confidence, info: WeightsInfo, classes: Collection[str] = ()) -> float | Tensor:
    """Return the lowest confidence of a detection: one number, or a number for each of K classes, (K,), for `best` or some classes.

    Args:
        confidence: one number for all classes, or `best`.
        info: weights of the network.
        classes: names of the only classes to detect; the others get infinity. Empty for all.
    """
    if confidence != "best" and not classes:
        return confidence
    least = {name: info.thresholds.get(name, FALLBACK_CONFIDENCE) if confidence == "best" else confidence for name in info.classes}
    detected = classes or info.classes
    return torch.tensor([number if name in detected else math.inf for name, number in least.items()], dtype=torch.float32)


def check_classes(classes: Collection[str], info: WeightsInfo) -> None:
    """Raise ConfigError unless the network has learned all classes with the given names."""
    for name in classes:
        check(name in info.classes, "classes", name[:80], f"some of {', '.join(info.classes)}"[:1000])


def select(outputs: Mapping[str, Tensor], *, confidence: float | Tensor, iou: float, max_detections: int) -> list[Detections]:
    """Select each image's detections from a predictor's outputs: confidence threshold, then non-maximum suppression.

    `confidence` is one number, or a number for each of K classes, (K,).
    """
    detections = []
    for image, (image_boxes, image_scores) in enumerate(zip(outputs["boxes_xyxy"], outputs["scores"], strict=True)):
        *selected, predictions = boxes.select(image_boxes, image_scores, confidence=confidence, iou=iou, limit=max_detections)
        optional = {name: outputs[name][image][predictions].cpu() for name in PREDICTION_OUTPUTS if name in outputs}
        optional |= {name: outputs[name][image].cpu() for name in IMAGE_OUTPUTS if name in outputs}
        detections.append(Detections(*(tensor.cpu() for tensor in selected), **optional))
    return detections


@torch.inference_mode()
def detect(
    predictor: Predictor,
    images: UInt8[Tensor, "B S S 3"],
    device: torch.device,
    *,
    confidence: float | Tensor,
    iou: float,
    max_detections: int,
) -> list[Detections]:
    """Return the detections of each image, in pixels of the network input; the predictor gets floats on `device`."""
    return select(predictor(to_input(images, device)), confidence=confidence, iou=iou, max_detections=max_detections)


def detect_within_memory(predictor: Predictor, images: UInt8[Tensor, "B S S 3"], device: torch.device, **limits: Any) -> list[Detections]:
    """Return the detections of each image as `detect` does; a batch that does not fit into the GPU's memory is halved."""
    try:
        return detect(predictor, images, device, **limits)
    except torch.OutOfMemoryError:
        if len(images) == 1:
            raise
    torch.cuda.empty_cache()
    return [detections for half in images.chunk(2) for detections in detect_within_memory(predictor, half, device, **limits)]


def predict(network: Yolor, images: UInt8[Tensor, "B S S 3"], *, confidence: float, iou: float, max_detections: int) -> list[Detections]:
    """Return the detections of each image by torch, on the network's device; the network must be in eval mode."""
    device = next(network.parameters()).device
    return detect(DecodedYolor(network), images, device, confidence=confidence, iou=iou, max_detections=max_detections)

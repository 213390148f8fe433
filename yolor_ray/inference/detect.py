"""Run a network on images and return detections.

Legend: B images, S side of the square input in pixels, D detections, J keypoints, E numbers of an embedding, C prototypes, M image labels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from yolor_ray import boxes
from yolor_ray.inference.runtimes import DecodedYolor, Predictor
from yolor_ray.model.network import Yolor


@dataclass(frozen=True)
class Detections:
    """Hold what was found in one image, best first, on the CPU; what the network has not learned is None."""

    boxes_xyxy: Float[Tensor, "D 4"]
    """Pixels of the network input."""
    confidences: Float[Tensor, "D"]
    """0 to 1."""
    labels: Int[Tensor, "D"]
    """Index into the classes."""
    keypoints: Float[Tensor, "D J 3"] | None = None
    """x and y in pixels of the network input, and the probability of being there to be seen."""
    embeddings: Float[Tensor, "D E"] | None = None
    """Of length 1."""
    coefficients: Float[Tensor, "D C"] | None = None
    """What the prototypes are multiplied by: the sum, cut to the box, is the logits of the mask."""
    prototypes: Float[Tensor, "C _ _"] | None = None
    """Of the image as a whole, a quarter of its sides."""
    image_labels: Float[Tensor, "M"] | None = None
    """Probability of each label of the image as a whole."""


def to_input(images: UInt8[Tensor, "B S S 3"], device: torch.device) -> Float[Tensor, "B 3 S S"]:
    """Return RGB bytes as 0..1 channels-last floats on the device."""
    return images.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)


OF_PREDICTIONS = ("keypoints", "embeddings", "coefficients")
"""Outputs that each prediction has."""
OF_IMAGES = ("prototypes", "image_labels")
"""Outputs that the image has."""


def select(outputs: Mapping[str, Tensor], *, confidence: float, iou: float, max_detections: int) -> list[Detections]:
    """Return the detections of each image from all that a predictor said: those confident enough, after non-maximum suppression."""
    found = []
    for image, (image_boxes, image_scores) in enumerate(zip(outputs["boxes_xyxy"], outputs["scores"], strict=True)):
        *selected, predictions = boxes.select(image_boxes, image_scores, confidence=confidence, iou=iou, limit=max_detections)
        others = {name: outputs[name][image][predictions].cpu() for name in OF_PREDICTIONS if name in outputs}
        others |= {name: outputs[name][image].cpu() for name in OF_IMAGES if name in outputs}
        found.append(Detections(*(part.cpu() for part in selected), **others))
    return found


@torch.inference_mode()
def detect(
    predictor: Predictor,
    images: UInt8[Tensor, "B S S 3"],
    device: torch.device,
    *,
    confidence: float,
    iou: float,
    max_detections: int,
) -> list[Detections]:
    """Return the detections of each image, in pixels of the network input, by any way to run a network; it takes floats on `device`."""
    return select(predictor(to_input(images, device)), confidence=confidence, iou=iou, max_detections=max_detections)


def predict(network: Yolor, images: UInt8[Tensor, "B S S 3"], *, confidence: float, iou: float, max_detections: int) -> list[Detections]:
    """Return the same with the network as it is; it must be in eval mode."""
    device = next(network.parameters()).device
    return detect(DecodedYolor(network), images, device, confidence=confidence, iou=iou, max_detections=max_detections)

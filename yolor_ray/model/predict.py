"""Run a network on images and return detections.

Legend: B images, S side of the square input in pixels, P predictions, K classes, D detections.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from yolor_ray import boxes
from yolor_ray.model.graph import DecodedYolor, Predictor
from yolor_ray.model.network import Yolor


@dataclass(frozen=True)
class Detections:
    """Hold what was found in one image, best first, on the CPU."""

    boxes_xyxy: Float[Tensor, "D 4"]
    """Pixels of the network input, or of the image once mapped back."""
    confidences: Float[Tensor, "D"]
    """0 to 1."""
    labels: Int[Tensor, "D"]
    """Index into the classes."""


def to_input(images: UInt8[Tensor, "B S S 3"], device: torch.device) -> Float[Tensor, "B 3 S S"]:
    """Return RGB bytes as 0..1 channels-last floats on the device."""
    return images.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)


def select(
    boxes_xyxy: Float[Tensor, "B P 4"], scores: Float[Tensor, "B P K"], *, confidence: float, iou: float, max_detections: int
) -> list[Detections]:
    """Return the detections of each image from all its predictions: those confident enough, after non-maximum suppression."""
    found = []
    for image_boxes, image_scores in zip(boxes_xyxy, scores, strict=True):
        selected = boxes.select(image_boxes, image_scores, confidence=confidence, iou=iou, limit=max_detections)
        found.append(Detections(*(part.cpu() for part in selected)))
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
    return select(*predictor(to_input(images, device)), confidence=confidence, iou=iou, max_detections=max_detections)


def predict(network: Yolor, images: UInt8[Tensor, "B S S 3"], *, confidence: float, iou: float, max_detections: int) -> list[Detections]:
    """Return the same with the network as it is; it must be in eval mode."""
    device = next(network.parameters()).device
    return detect(DecodedYolor(network), images, device, confidence=confidence, iou=iou, max_detections=max_detections)

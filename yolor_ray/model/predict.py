"""Run a network on images and return detections.

Legend: B images, S side of the square input in pixels, D detections.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from yolor_ray import boxes
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


@torch.inference_mode()
def predict(network: Yolor, images: UInt8[Tensor, "B S S 3"], *, confidence: float, iou: float, max_detections: int) -> list[Detections]:
    """Return the detections of each image, in pixels of the network input; the network must be in eval mode."""
    device = next(network.parameters()).device
    boxes_cxcywh, scores = network.head.decode(network(to_input(images, device)))
    boxes_xyxy = boxes.xyxy_from_cxcywh(boxes_cxcywh)
    found = []
    for image_boxes, image_scores in zip(boxes_xyxy, scores, strict=True):
        selected = boxes.select(image_boxes, image_scores, confidence=confidence, iou=iou, limit=max_detections)
        found.append(Detections(*(part.cpu() for part in selected)))
    return found

"""CIoU by the formulas of arXiv 1911.08287 with gradients by autograd: many operations, and as plain as the paper."""

import math

import torch
from torch import Tensor


def plain_ciou(a_cxcywh: Tensor, b_cxcywh: Tensor) -> Tensor:
    """Return the CIoU of boxes, computed in float64; the trade-off weight of the aspect term gets no gradient."""
    (x_a, y_a, w_a, h_a), (x_b, y_b, w_b, h_b) = a_cxcywh.double().unbind(-1), b_cxcywh.double().unbind(-1)
    inner, hull = [], []
    for centre_a, size_a, centre_b, size_b in ((x_a, w_a, x_b, w_b), (y_a, h_a, y_b, h_b)):
        low_a, low_b, high_a, high_b = centre_a - size_a / 2, centre_b - size_b / 2, centre_a + size_a / 2, centre_b + size_b / 2
        inner.append((torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)).clamp(min=0))
        hull.append(torch.maximum(high_a, high_b) - torch.minimum(low_a, low_b))
    intersection = inner[0] * inner[1]
    iou = intersection / (w_a * h_a + w_b * h_b - intersection)
    distance = ((x_a - x_b) ** 2 + (y_a - y_b) ** 2) / (hull[0] ** 2 + hull[1] ** 2)
    aspect = 4 / math.pi**2 * (torch.atan(w_a / h_a) - torch.atan(w_b / h_b)) ** 2
    weight = (aspect / (1 - iou + aspect).clamp(min=1e-7)).detach()
    return (iou - distance - weight * aspect).to(a_cxcywh.dtype)

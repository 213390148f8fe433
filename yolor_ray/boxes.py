"""Convert, compare and select boxes, as tensors.

`boxes_xyxy` are corners x1, y1, x2, y2 and `boxes_cxcywh` are centre and size, both in pixels.
Legend: N and M boxes, P predictions, K classes, D detections.
"""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

CANDIDATE_LIMIT = 20_000
"""Largest number of candidates per image for non-maximum suppression; the best ones are kept."""
NMS_BLOCK = 256
"""Boxes that suppression compares at a time."""
EPS = 1e-7


def xyxy_from_cxcywh(boxes_cxcywh: Float[Tensor, "... 4"]) -> Float[Tensor, "... 4"]:
    """Convert centre and size to corners."""
    centre, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def cxcywh_from_xyxy(boxes_xyxy: Float[Tensor, "... 4"]) -> Float[Tensor, "... 4"]:
    """Convert corners to centre and size."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat(((low + high) / 2, high - low), dim=-1)


def _intersection_and_union(a_xyxy: Float[Tensor, "... 4"], b_xyxy: Float[Tensor, "... 4"]) -> tuple[Tensor, Tensor]:
    """Return intersection and union areas of boxes whose leading dimensions are broadcast."""
    sides = (torch.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:]) - torch.maximum(a_xyxy[..., :2], b_xyxy[..., :2])).clamp(min=0)
    intersection = sides.prod(dim=-1)
    areas = (a_xyxy[..., 2:] - a_xyxy[..., :2]).prod(dim=-1) + (b_xyxy[..., 2:] - b_xyxy[..., :2]).prod(dim=-1)
    return intersection, areas - intersection


def pairwise_iou(a_xyxy: Float[Tensor, "N 4"], b_xyxy: Float[Tensor, "M 4"]) -> Float[Tensor, "N M"]:
    """Return the intersection over union of every pair."""
    intersection, union = _intersection_and_union(a_xyxy[:, None], b_xyxy[None])
    return intersection / union.clamp(min=EPS)


def complete_iou(a_cxcywh: Float[Tensor, "N 4"], b_cxcywh: Float[Tensor, "N 4"]) -> Float[Tensor, "N"]:
    """Return the CIoU of paired boxes: IoU less centre distance and aspect difference (arXiv 1911.08287).

    The trade-off weight of the aspect term gets no gradient.
    """
    a_xyxy, b_xyxy = xyxy_from_cxcywh(a_cxcywh), xyxy_from_cxcywh(b_cxcywh)
    intersection, union = _intersection_and_union(a_xyxy, b_xyxy)
    iou = intersection / (union + EPS)
    hull = torch.maximum(a_xyxy[:, 2:], b_xyxy[:, 2:]) - torch.minimum(a_xyxy[:, :2], b_xyxy[:, :2])
    distance = (a_cxcywh[:, :2] - b_cxcywh[:, :2]).square().sum(dim=-1) / (hull.square().sum(dim=-1) + EPS)
    angle_a = torch.atan(a_cxcywh[:, 2] / (a_cxcywh[:, 3] + EPS))
    angle_b = torch.atan(b_cxcywh[:, 2] / (b_cxcywh[:, 3] + EPS))
    aspect = 4 / math.pi**2 * (angle_a - angle_b).square()
    with torch.no_grad():
        weight = aspect / (1 - iou + aspect + EPS)
    return iou - distance - weight * aspect


def _suppress_in_block(suppresses: Bool[Tensor, "N N"], candidates: Bool[Tensor, "N"]) -> Bool[Tensor, "N"]:
    """Run greedy suppression inside one block, best box first.

    The loop iterates keep = candidate and not suppressed by a kept box, up to the fixed point.
    """
    by_better = suppresses.triu(diagonal=1)
    keep = candidates
    while True:
        new_keep = candidates & ~(by_better & keep[:, None]).any(dim=0)
        if torch.equal(new_keep, keep):
            return keep
        keep = new_keep


def suppress(
    boxes_xyxy: Float[Tensor, "N 4"], scores: Float[Tensor, "N"], labels: Int[Tensor, "N"], *, iou: float, limit: int
) -> Int[Tensor, "D"]:
    """Run greedy non-maximum suppression per class and return the indices of the kept boxes, best first, at most `limit`.

    A box is suppressed if its IoU with a better box of its class is larger than `iou`. Boxes of equal score keep their order.
    """
    order = scores.argsort(descending=True, stable=True)
    kept = order[:0]
    for start in range(0, len(order), NMS_BLOCK):
        block = order[start : start + NMS_BLOCK]
        by_kept = (pairwise_iou(boxes_xyxy[kept], boxes_xyxy[block]) > iou) & (labels[kept, None] == labels[block])
        in_block = (pairwise_iou(boxes_xyxy[block], boxes_xyxy[block]) > iou) & (labels[block, None] == labels[block])
        kept = torch.cat((kept, block[_suppress_in_block(in_block, ~by_kept.any(dim=0))]))
        if len(kept) >= limit:
            break
    return kept[:limit]


def _above_confidence(scores: Float[Tensor, "P K"], confidence: float) -> tuple[Int[Tensor, "N"], Int[Tensor, "N"]]:
    """Return prediction and label of each score above the confidence, in order."""
    if scores.device.type != "cpu":
        predictions, labels = (scores > confidence).nonzero(as_tuple=True)
        return predictions, labels
    # NumPy is six times as fast as torch, a measurable part of a small network's time.
    flat_indices = torch.from_numpy(np.flatnonzero(scores.numpy() > confidence))
    return flat_indices // scores.shape[1], flat_indices % scores.shape[1]


def select(
    boxes_xyxy: Float[Tensor, "P 4"], scores: Float[Tensor, "P K"], *, confidence: float, iou: float, limit: int
) -> tuple[Float[Tensor, "D 4"], Float[Tensor, "D"], Int[Tensor, "D"], Int[Tensor, "D"]]:
    """Return boxes, scores, labels and prediction indices of one image's detections, best first.

    A prediction may have several classes; boxes of different classes never suppress each other.
    """
    predictions, labels = _above_confidence(scores, confidence)
    confidences = scores[predictions, labels]
    if len(confidences) > CANDIDATE_LIMIT:
        confidences, best = confidences.topk(CANDIDATE_LIMIT)
        predictions, labels = predictions[best], labels[best]
    candidates_xyxy = boxes_xyxy[predictions]
    kept = suppress(candidates_xyxy, confidences, labels, iou=iou, limit=limit)
    return candidates_xyxy[kept], confidences[kept], labels[kept], predictions[kept]

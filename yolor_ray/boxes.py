"""Convert, compare and select boxes, as tensors.

`boxes_xyxy` are corners x1, y1, x2, y2 and `boxes_cxcywh` are centre and size, both in pixels. `boxes_ltrb` are the distances from a point
to the left, upper, right and lower side, negative if the point is beyond the side (FCOS, arXiv 1904.01355).
Legend: N and M boxes, P predictions, K classes, D detections.
"""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

CANDIDATE_LIMIT = 20_000
"""Largest number of candidates per image for non-maximum suppression; the best ones are kept."""
FIRST_CANDIDATES = 2_048
"""Candidates that suppression gets at first; mostly enough to fill the limit of detections."""
NMS_BLOCK = 64
"""Boxes that suppression compares with all others of a chunk at a time."""
NMS_CHUNK = 512
"""Boxes of the first chunk, the best ones; mostly enough to fill the limit of detections."""
NMS_CHUNK_GROWTH = 8
"""Size of a chunk relative to the one before it."""
EPS = 1e-7
ASPECT_SCALE = 4 / math.pi**2
"""Scale of the aspect term, which makes it 0..1."""


def xyxy_from_cxcywh(boxes_cxcywh: Float[Tensor, "... 4"]) -> Float[Tensor, "... 4"]:
    """Convert centre and size to corners."""
    centre, size = boxes_cxcywh.chunk(2, dim=-1)
    half = size / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def cxcywh_from_xyxy(boxes_xyxy: Float[Tensor, "... 4"]) -> Float[Tensor, "... 4"]:
    """Convert corners to centre and size."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat(((low + high) / 2, high - low), dim=-1)


def pairwise_iou(a_xyxy: Float[Tensor, "N 4"], b_xyxy: Float[Tensor, "M 4"]) -> Float[Tensor, "N M"]:
    """Return the intersection over union of every pair."""
    (low_a, high_a), (low_b, high_b) = a_xyxy[:, None].chunk(2, dim=-1), b_xyxy[None].chunk(2, dim=-1)
    intersection = _area((torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)).clamp(min=0))
    union = _area(high_a - low_a) + _area(high_b - low_b) - intersection
    return intersection / union.clamp(min=EPS)


def _area(sizes: Float[Tensor, "... 2"]) -> Float[Tensor, "..."]:
    return sizes.prod(dim=-1)


def ltrb_from_cxcywh(boxes_cxcywh: Float[Tensor, "... 4"]) -> Float[Tensor, "... 4"]:
    """Convert centre and size to distances from the origin."""
    centre, size = boxes_cxcywh.chunk(2, dim=-1)
    half = size / 2
    return torch.cat((half - centre, half + centre), dim=-1)


def complete_iou(a_ltrb: Float[Tensor, "... 4"], b_ltrb: Float[Tensor, "... 4"]) -> Float[Tensor, "..."]:
    """Return the CIoU of boxes: IoU less centre distance and aspect difference (arXiv 1911.08287); leading dimensions are broadcast.

    The distances are from the same point, in any unit. Neither `b_ltrb` nor the trade-off weight of the aspect term gets a gradient.
    """
    ciou: Tensor = _CompleteIou.apply(a_ltrb, b_ltrb)
    return ciou


class _CompleteIou(torch.autograd.Function):
    """CIoU with a gradient in closed form: autograd would launch three times as many kernels."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        inner, outer = _sizes(torch.minimum(a, b)).clamp(min=0), _sizes(torch.maximum(a, b))
        size_a, size_b = _sizes(a), _sizes(b)
        intersection = _area(inner)
        union = (_area(size_a) + _area(size_b) - intersection).clamp(min=EPS)
        iou = intersection / union
        low, high = (a - b).chunk(2, dim=-1)
        shift = high - low  # twice the distance of the centres
        distance, diagonal = shift.square().sum(dim=-1), outer.square().sum(dim=-1).clamp(min=EPS)  # squared
        turn = _angle(size_a) - _angle(size_b)
        turn_squared = turn.square()
        weight = turn_squared / torch.add(turn_squared, 1 + EPS - iou, alpha=1 / ASPECT_SCALE)
        ctx.save_for_backward(a, b, inner, outer, size_a, shift, union, iou, diagonal, distance, turn, weight)
        return torch.addcdiv(iou, distance, diagonal, value=-1 / 4).addcmul_(weight, turn_squared, value=-ASPECT_SCALE)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        a, b, inner, outer, size_a, shift, union, iou, diagonal, distance, turn, weight = ctx.saved_tensors
        # The gradient of the intersection by a side is the intersection divided by the side.
        by_inner = torch.addcmul(iou, iou, iou)[..., None] / inner.clamp(min=EPS)
        twice = 2 * diagonal
        by_outer = outer * (distance / (twice * diagonal))[..., None]
        by_shift = shift / twice[..., None]
        by_area = iou / union
        by_angle = weight * turn / size_a.square().sum(dim=-1).clamp(min=EPS)
        by_size = size_a.flip(-1) * torch.stack([by_area.add(by_angle, alpha=sign * 2 * ASPECT_SCALE) for sign in (1, -1)], dim=-1)
        # A side of `a` is a side of the inner box or of the outer one.
        by_side = torch.where((a < b).unflatten(-1, (2, 2)), by_inner[..., None, :], by_outer[..., None, :]).flatten(-2)
        return gradient[..., None] * (by_side - torch.cat((by_size - by_shift, by_size + by_shift), dim=-1)), None


def _sizes(ltrb: Float[Tensor, "... 4"]) -> Float[Tensor, "... 2"]:
    """Return width and height."""
    low, high = ltrb.chunk(2, dim=-1)
    return low + high


def _angle(sizes: Float[Tensor, "... 2"]) -> Float[Tensor, "..."]:
    width, height = sizes.unbind(dim=-1)
    return torch.atan2(width, height)


def _overlaps(a: np.ndarray, b: np.ndarray, iou: float) -> np.ndarray:
    """Return the pairs of one class whose IoU is larger than `iou`, (N, M) bool; rows of (6, N) and (6, M): x1, y1, x2, y2, area, class."""
    left, top, right, bottom, area, label = a[..., None]
    width = np.minimum(right, b[2])
    width -= np.maximum(left, b[0])
    np.maximum(width, 0, out=width)
    intersection = np.minimum(bottom, b[3])
    intersection -= np.maximum(top, b[1])
    np.maximum(intersection, 0, out=intersection)
    intersection *= width
    union = np.add(area, b[4], out=width)
    union -= intersection
    np.maximum(union, EPS, out=union)
    intersection /= union
    overlaps: np.ndarray = intersection > iou
    overlaps &= label == b[5]
    return overlaps


def _suppress_in_block(block: np.ndarray, iou: float) -> np.ndarray:
    """Run greedy suppression inside one block (6, N), best box first, and return the kept ones, (N,) bool.

    The loop iterates keep = not suppressed by a kept box, up to the fixed point.
    """
    by_better = np.triu(_overlaps(block, block, iou), k=1)
    keep: np.ndarray = np.ones(len(by_better), bool)
    while True:
        new_keep: np.ndarray = ~by_better[keep].any(axis=0)
        if np.array_equal(new_keep, keep):
            return keep
        keep = new_keep


def suppress(
    boxes_xyxy: Float[Tensor, "N 4"], scores: Float[Tensor, "N"], labels: Int[Tensor, "N"], *, iou: float, limit: int
) -> Int[Tensor, "D"]:
    """Run greedy non-maximum suppression per class and return the indices of the kept boxes, best first, at most `limit`.

    A box is suppressed if its IoU with a better box of its class is larger than `iou`. Boxes of equal score keep their order.
    Runs on the CPU, block by block: the kept boxes of a block leave few boxes for the next ones. The result is on the device of the boxes.
    """
    order = scores.argsort(descending=True, stable=True).cpu().numpy()
    x1, y1, x2, y2 = boxes_xyxy.detach().float().cpu().numpy().T
    columns = np.stack((x1, y1, x2, y2, (x2 - x1) * (y2 - y1), labels.cpu().numpy().astype(np.float32)))[:, order]
    blocks: list[np.ndarray] = []
    kept, start, size = 0, 0, NMS_CHUNK
    while start < len(order) and kept < limit:
        rest = np.arange(start, min(start + size, len(order)))
        start, size = start + size, size * NMS_CHUNK_GROWTH
        for block in blocks:
            rest = rest[~_overlaps(columns[:, block], columns[:, rest], iou).any(axis=0)]
        while len(rest) and kept < limit:
            block, rest = rest[:NMS_BLOCK], rest[NMS_BLOCK:]
            block = block[_suppress_in_block(columns[:, block], iou)]
            rest = rest[~_overlaps(columns[:, block], columns[:, rest], iou).any(axis=0)]
            blocks.append(block)
            kept += len(block)
    best = order[np.concatenate(blocks)[:limit]] if blocks else order[:0]
    return torch.from_numpy(best).to(boxes_xyxy.device)


def _best_above(scores: Float[Tensor, "P K"], confidence: float, count: int) -> tuple[Int[Tensor, "N"], Int[Tensor, "N"]]:
    """Return prediction and label of the `count` best scores above the confidence, best first; equal scores in order."""
    best = scores.amax(dim=1)
    if best.isnan().any():
        # NaN is above no confidence, and would hide the other scores of its prediction.
        scores = scores.nan_to_num(nan=-math.inf, posinf=math.inf)
        best = scores.amax(dim=1)
    is_candidate = best > confidence
    if count < len(best):
        # The predictions' best scores alone make `count` numbers from this one on.
        is_candidate &= best >= _kth_largest(best, count)
    rows = _true_indices(is_candidate)
    values = scores[rows].reshape(-1)
    is_above = values > confidence
    if len(rows) >= count:
        is_above &= values >= best[rows].min()
    indices = _true_indices(is_above)
    if len(indices) > count:
        indices = indices[_true_indices(values[indices] >= _kth_largest(values[indices], count))]
    indices = indices[values[indices].argsort(descending=True, stable=True)[:count]]
    return rows[indices // scores.shape[1]], indices % scores.shape[1]


def _true_indices(values: Bool[Tensor, "N"]) -> Int[Tensor, "M"]:
    # NumPy is six times as fast as torch on the CPU, a measurable part of a small network's time.
    return torch.from_numpy(np.flatnonzero(values.numpy())) if values.device.type == "cpu" else values.nonzero()[:, 0]


def _kth_largest(values: Float[Tensor, "N"], k: int) -> float:
    """Return the k-th largest of N values without NaN, k from 1 to N."""
    if values.device.type != "cpu":
        return values.topk(k).values[-1].item()
    # NumPy partitions in less than a tenth of the time of torch.
    return np.partition(values.numpy(), len(values) - k)[len(values) - k].item()


def select(
    boxes_xyxy: Float[Tensor, "P 4"], scores: Float[Tensor, "P K"], *, confidence: float | Tensor, iou: float, limit: int
) -> tuple[Float[Tensor, "D 4"], Float[Tensor, "D"], Int[Tensor, "D"], Int[Tensor, "D"]]:
    """Return boxes, scores, labels and prediction indices of one image's detections, best first.

    `confidence` is one number, or a number for each class, (K,); a score must be larger. A prediction may have several classes; boxes of
    different classes never suppress each other.
    """
    if isinstance(confidence, Tensor):
        scores, confidence = scores.where(scores > confidence.to(scores.device), -math.inf), -math.inf
    for count in (FIRST_CANDIDATES, CANDIDATE_LIMIT):
        predictions, labels = _best_above(scores, confidence, count)
        candidates_xyxy, confidences = boxes_xyxy[predictions], scores[predictions, labels]
        kept = suppress(candidates_xyxy, confidences, labels, iou=iou, limit=limit)
        # Suppression goes from the best to the worst: worse candidates change nothing once `limit` boxes are kept.
        if len(kept) == limit or len(predictions) < count:
            break
    return candidates_xyxy[kept], confidences[kept], labels[kept], predictions[kept]

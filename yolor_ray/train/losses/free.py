"""Loss of the head without anchors: task-aligned assignment, CIoU of assigned boxes, classes of every cell (TOOD, arXiv 2108.07755).

Legend: B images, N boxes in the batch, P predictions of an image, K classes, R bins of a distance, F = 4 · R + K numbers per cell,
M pairs of box and prediction.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from yolor_ray.boxes import complete_iou
from yolor_ray.config import LossConfig
from yolor_ray.model.heads.free import FreeHead
from yolor_ray.model.heads.prediction_level import cell_coordinates
from yolor_ray.train.losses.assign import Matches, Targets, contains

SCORE_POWER, IOU_POWER = 0.5, 6.0
"""Exponents of the alignment score^0.5 · IoU^6 (equation 1 of TOOD, whose own exponents are 1 and 6)."""
PREDICTIONS_PER_BOX = 10
"""Maximum predictions that learn a box."""
BOX_SCALE, CLS_SCALE = 150.0, 10 / 3
"""Factors of the gains, whose defaults are for the head with anchors: the default gains become 7.5 and 1."""
DISTRIBUTION_SHARE = 0.2
"""Factor of the cross-entropy of the distances' bins within the term `box`, beside 1 - CIoU."""
MIN_ALIGNMENT = 1e-9
"""Alignment of a prediction without overlap, so that each box has a best prediction."""


@dataclass(frozen=True)
class Assignment:
    """Pairs of a box and a prediction that learns the box."""

    objects: Int[Tensor, "M"]
    """Index of the box in the targets."""
    images: Int[Tensor, "M"]
    predictions: Int[Tensor, "M"]
    """Index among the P predictions of the image."""
    scores: Float[Tensor, "M"]
    """Target of the class probability, 0..1: the alignment, scaled to the box's best IoU."""

    def select(self, keep: Tensor) -> "Assignment":
        """Return the pairs at the given indices."""
        return Assignment(self.objects[keep], self.images[keep], self.predictions[keep], self.scores[keep])


def free_losses(
    raw: list[Float[Tensor, "B 1 _ _ F"]],
    targets: Targets,
    head: FreeHead,
    gains: LossConfig,
    class_weights: Tensor | None = None,
) -> tuple[dict[str, Tensor], list[Matches]]:
    """Return the weighted terms `box` and `cls`, in float32 for any precision of the network, and the matches of each level.

    Both terms are sums over the batch, divided by the sum of the target scores.

    Args:
        raw: raw outputs of the head, (B, 1, H, W, F) per level.
        targets: annotations of the B images.
        head: the detection head.
        gains: gains of the terms.
        class_weights: (K,) weight in `cls` of a box by its class; None weighs all boxes equally.
    """
    boxes_cxcywh, _ = head.decode(raw)
    outputs = torch.cat([level.flatten(1, 3) for level in raw], dim=1).float()
    distances, logits = head.split_outputs(outputs)
    shapes = [(level.shape[2], level.shape[3]) for level in raw]
    background = targets.background_known(shapes, head.strides, len(logits))
    assigned = assign(boxes_cxcywh.detach(), logits.detach().sigmoid(), targets, shapes, head.strides)
    total = assigned.scores.sum().clamp(min=1)
    cells = assigned.images, assigned.predictions
    box_losses = 1 - complete_iou(boxes_cxcywh[cells], targets.boxes_cxcywh[assigned.objects])
    if head.bins > 1:
        expected = true_distances(assigned, targets, raw, head.strides)
        box_losses = box_losses + DISTRIBUTION_SHARE * distribution_loss(distances[cells], expected)
    terms = {
        "box": (box_losses * assigned.scores).sum() / total * (gains.box * BOX_SCALE),
        "cls": _class_loss(logits, assigned, targets, background, class_weights) / total * (gains.cls * CLS_SCALE),
    }
    return terms, _matches(assigned, raw)


def true_distances(assigned: Assignment, targets: Targets, raw: list[Tensor], strides: Sequence[int]) -> Float[Tensor, "M 4"]:
    """Return the distances from the centre of each assigned cell to the sides of its box, in cells; below 0 outside of the box."""
    centres = torch.cat([(cell_coordinates(level) + 0.5).flatten(0, 1) for level in raw])[assigned.predictions]
    cell_sides = torch.cat([torch.full(level.shape[2:4], stride).flatten() for level, stride in zip(raw, strides, strict=True)])
    boxes = targets.boxes_cxcywh[assigned.objects] / cell_sides.to(centres)[assigned.predictions, None]
    offset, half = boxes[:, :2] - centres, boxes[:, 2:] / 2
    return torch.cat((half - offset, half + offset), dim=1)


def distribution_loss(distances: Float[Tensor, "M 4 R"], expected: Float[Tensor, "M 4"]) -> Float[Tensor, "M"]:
    """Return the cross-entropy of the two bins beside each expected distance, a mean over the four (arXiv 2006.04388, equation 6)."""
    last = distances.shape[-1] - 1
    expected = expected.clamp(0, last)
    lower = expected.floor().clamp(max=last - 1)
    logs = distances.log_softmax(dim=-1)
    log_lower, log_upper = (logs.gather(-1, bins.long()[..., None])[..., 0] for bins in (lower, lower + 1))
    return -(log_lower * (lower + 1 - expected) + log_upper * (expected - lower)).mean(dim=1)


def _class_loss(
    logits: Float[Tensor, "B P K"], assigned: Assignment, targets: Targets, background: Bool[Tensor, "B P"], class_weights: Tensor | None
) -> Tensor:
    """Return the summed binary cross-entropy of known classes; where not every object has a box, only assigned predictions count."""
    expected = torch.zeros_like(logits)
    expected[assigned.images, assigned.predictions] = assigned.scores[:, None] * targets.class_targets(assigned.objects, logits.shape[-1])
    losses = F.binary_cross_entropy_with_logits(logits, expected, reduction="none")
    if targets.classes_known is not None:
        losses = losses * targets.classes_known[:, None]
    labels, weights = targets.labels[assigned.objects], background.to(losses)
    weights[assigned.images, assigned.predictions] = 1.0 if class_weights is None else class_weights[labels]
    return (losses.sum(dim=-1) * weights).sum()


def assign(
    boxes_cxcywh: Float[Tensor, "B P 4"],
    scores: Float[Tensor, "B P K"],
    targets: Targets,
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
) -> Assignment:
    """Assign each box to its best-aligned predictions among the cells whose centre lies in the box.

    A prediction learns the box with which it overlaps most.

    Args:
        boxes_cxcywh: predicted boxes in pixels.
        scores: predicted class probabilities.
        targets: N boxes.
        shapes: rows and columns of each level.
        strides: pixels per cell of each level, the finest first.
    """
    objects, predictions = contains(targets.boxes_cxcywh, shapes, strides).nonzero(as_tuple=True)
    images = targets.images[objects]
    iou = complete_iou(boxes_cxcywh[images, predictions], targets.boxes_cxcywh[objects]).clamp(min=0)
    alignment = scores[images, predictions, targets.labels[objects]] ** SCORE_POWER * iou**IOU_POWER + MIN_ALIGNMENT
    best = _best_of_each(objects, alignment, PREDICTIONS_PER_BOX)
    best = best[_best_of_each(images[best] * boxes_cxcywh.shape[1] + predictions[best], iou[best], 1)]
    objects, alignment, iou = objects[best], alignment[best], iou[best]
    largest = torch.zeros(2, len(targets.labels), device=iou.device)
    largest = largest.scatter_reduce(1, objects.expand(2, -1), torch.stack((alignment, iou)), "amax")
    best_alignment, best_iou = largest[:, objects]
    return Assignment(objects, images[best], predictions[best], alignment / best_alignment * best_iou)


def _best_of_each(groups: Int[Tensor, "M"], values: Float[Tensor, "M"], limit: int) -> Tensor:
    """Return the indices of the `limit` largest values of each group; of equal values, the first."""
    order = values.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]
    _, counts = torch.unique_consecutive(groups[order], return_counts=True)
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    return order[torch.arange(len(order), device=order.device) - starts < limit]


def _matches(assigned: Assignment, raw: list[Tensor]) -> list[Matches]:
    """Return the assignment level by level, for the losses of other tasks."""
    matches, start = [], 0
    for level in raw:
        height, width = level.shape[2:4]
        own = assigned.select(((assigned.predictions >= start) & (assigned.predictions < start + height * width)).nonzero()[:, 0])
        cells = own.predictions - start
        matches.append(Matches(own.objects, own.images, torch.zeros_like(cells), cells // width, cells % width))
        start += height * width
    return matches

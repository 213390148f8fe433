"""Loss of the head without anchors: task-aligned assignment, CIoU of assigned boxes, classes of every cell (TOOD, arXiv 2108.07755).

Legend: B images, N boxes in the batch, P predictions of an image, K classes, R bins of a distance, F = 4 · R + K numbers per cell,
T predictions that may learn a box, M = N · T pairs of box and prediction.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from yolor_ray.boxes import complete_iou
from yolor_ray.config import LossConfig
from yolor_ray.model.heads.free import FreeHead
from yolor_ray.model.heads.prediction_level import concatenate_levels
from yolor_ray.train.losses.assign import Matches, Targets
from yolor_ray.train.losses.grid import Grid, contains, grid_of

SCORE_POWER, IOU_POWER = 0.5, 6.0
"""Exponents of the alignment score^0.5 · IoU^6 (equation 1 of TOOD, whose own exponents are 1 and 6)."""
PREDICTIONS_PER_BOX = 10
"""Maximum predictions that learn a box."""
BOX_SCALE, CLS_SCALE = 150.0, 10 / 3
"""Factors of the gains, whose defaults are for the head with anchors: the default gains become 7.5 and 1."""
DISTRIBUTION_SHARE = 0.2
"""Factor of the cross-entropy of the distances' bins within the term `box`, beside 1 - CIoU."""
LOWEST_RANK = -(2**62)
"""Rank below those of all numbers."""
MIN_ALIGNMENT = 1e-9
"""Alignment of a prediction without overlap, so that each box has a best prediction."""


def free_losses(
    raw: list[Float[Tensor, "B 1 _ _ F"]],
    targets: Targets,
    head: FreeHead,
    gains: LossConfig,
    class_weights: Tensor | None = None,
) -> tuple[dict[str, Tensor], Matches]:
    """Return the weighted terms `box` and `cls`, in float32 for any precision of the network, and the matches.

    Both terms are sums over the batch, divided by the sum of the target scores.

    Args:
        raw: raw outputs of the head, (B, 1, H, W, F) per level.
        targets: annotations of the B images.
        head: the detection head.
        gains: gains of the terms.
        class_weights: (K,) weight in `cls` of a box by its class; None weighs all boxes equally.
    """
    grid = grid_of(raw, head.strides)
    distances, logits = head.split_outputs(concatenate_levels(raw).float())
    with torch.no_grad():
        boxes_cxcywh = head.decode_boxes(distances, grid.cells, grid.strides[:, None])
        matches, scores = assign(boxes_cxcywh, logits.sigmoid(), targets, grid)
    total = scores.sum().clamp(min=1)
    terms = {
        "box": (_box_losses(distances, targets, matches, head) * scores).sum() / total * (gains.box * BOX_SCALE),
        "cls": _class_loss(logits, scores, targets, matches, class_weights) / total * (gains.cls * CLS_SCALE),
    }
    return terms, matches


def _box_losses(distances: Float[Tensor, "B P 4 R"], targets: Targets, matches: Matches, head: FreeHead) -> Float[Tensor, "M"]:
    """Return 1 - CIoU of each pair, and with bins the cross-entropy of the distances too."""
    matched, expected = matches.gather(distances), targets.boxes_cxcywh[matches.objects]
    cells, strides = matches.grid.cells[matches.predictions], matches.grid.strides[matches.predictions, None]
    losses = 1 - complete_iou(head.decode_boxes(matched, cells, strides), expected)
    if head.bins == 1:
        return losses
    return losses + DISTRIBUTION_SHARE * distribution_loss(matched, true_distances(expected / strides, cells + 0.5))


def true_distances(boxes_cxcywh: Float[Tensor, "M 4"], centres: Float[Tensor, "M 2"]) -> Float[Tensor, "M 4"]:
    """Return the distances from each centre of a cell to the sides of its box, below 0 outside of the box; all in cells."""
    middle, size = boxes_cxcywh.chunk(2, dim=-1)
    offset, half = middle - centres, size / 2
    return torch.cat((half - offset, half + offset), dim=-1)


def distribution_loss(distances: Float[Tensor, "M 4 R"], expected: Float[Tensor, "M 4"]) -> Float[Tensor, "M"]:
    """Return the cross-entropy of the two bins beside each expected distance, a mean over the four (arXiv 2006.04388, equation 6)."""
    bins = torch.arange(distances.shape[-1], device=distances.device)
    shares = (1 - (expected.clamp(0, len(bins) - 1)[..., None] - bins).abs()).clamp(min=0)
    return -(distances.log_softmax(dim=-1) * shares).sum(dim=-1).mean(dim=1)


def _class_loss(
    logits: Float[Tensor, "B P K"], scores: Float[Tensor, "M"], targets: Targets, matches: Matches, class_weights: Tensor | None
) -> Tensor:
    """Return the summed binary cross-entropy of known classes; where not every object has a box, only assigned predictions count."""
    rows, objects = matches.rows, matches.objects
    learned = scores[:, None] * targets.class_targets(objects, logits.shape[-1])
    expected = torch.zeros_like(logits).flatten(0, 1).index_add(0, rows, learned).view_as(logits)
    losses = F.binary_cross_entropy_with_logits(logits, expected, reduction="none")
    if targets.classes_known is not None:
        losses = losses * targets.classes_known[:, None]
    if class_weights is None and targets.all_background_known:
        return losses.sum()
    grid = matches.grid
    weights = targets.background_known(grid, len(logits), grid.strides[:1]).to(losses).flatten()
    weight = 1.0 if class_weights is None else class_weights[targets.labels[objects]]
    # Each prediction learns one box at most, so the sum has one addend.
    weights = weights.index_add(0, rows, (weight - weights[rows]) * matches.valid)
    return (losses.sum(dim=-1).flatten() * weights).sum()


def assign(
    boxes_cxcywh: Float[Tensor, "B P 4"], scores: Float[Tensor, "B P K"], targets: Targets, grid: Grid
) -> tuple[Matches, Float[Tensor, "M"]]:
    """Assign each box to its best-aligned predictions among the cells whose centre lies in the box.

    A prediction learns the box with which it overlaps most. Of equal predictions or boxes, the first one counts. Returns the matches in
    the order of the boxes, and the target of each class probability, 0..1: the alignment, scaled to the box's best IoU.

    Args:
        boxes_cxcywh: predicted boxes in pixels.
        scores: predicted class probabilities.
        targets: N boxes.
        grid: the P predictions.
    """
    images = targets.images
    # A CPU computes fast on whole rows of P numbers: x of all predictions, then y, and so on.
    predicted = boxes_cxcywh.movedim(2, 0).contiguous().index_select(1, images).movedim(0, 2)
    score = scores.movedim(2, 1).flatten(0, 1).index_select(0, images * scores.shape[2] + targets.labels)
    all_iou = complete_iou(predicted, targets.boxes_cxcywh[:, None]).clamp(min=0)
    inside = contains(targets.boxes_cxcywh, grid, grid.strides[:1])
    all_alignments = (score**SCORE_POWER * all_iou**IOU_POWER + MIN_ALIGNMENT) * inside
    order = torch.arange(len(grid.cells), device=images.device)
    best = _rank(all_alignments, order).topk(min(PREDICTIONS_PER_BOX, len(order)), dim=1).indices
    alignment, iou = all_alignments.gather(1, best), all_iou.gather(1, best)
    valid = _keep_best_boxes(iou, alignment > 0, images[:, None] * len(order) + best, boxes_cxcywh[..., 0].numel())
    alignment, iou = alignment * valid, iou * valid
    best_alignment, best_iou = (values.amax(dim=1, keepdim=True) for values in (alignment, iou))
    objects = torch.arange(len(images), device=images.device)[:, None].expand_as(best).flatten()
    matches = Matches(valid.flatten(), objects, images[objects], best.flatten(), grid)
    return matches, (alignment / best_alignment.clamp(min=MIN_ALIGNMENT) * best_iou).flatten()


def _keep_best_boxes(iou: Float[Tensor, "N T"], valid: Bool[Tensor, "N T"], rows: Int[Tensor, "N T"], count: int) -> Bool[Tensor, "N T"]:
    """Return True for the valid pair with the largest IoU of each prediction; `rows` are indices among `count` predictions of the batch."""
    ranks = _rank(iou, torch.arange(rows.numel(), device=rows.device).view_as(rows)).where(valid, LOWEST_RANK)
    best = torch.full((count,), LOWEST_RANK, device=rows.device).scatter_reduce(0, rows.flatten(), ranks.flatten(), "amax")
    return valid & (ranks == best[rows])


def _rank(values: Float[Tensor, "..."], order: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Return different integers in the order of numbers from 0; of equal numbers, the first in `order` has the largest integer."""
    # The bits of a float from 0, read as an integer, have the order of the floats.
    return values.view(torch.int32).long().mul_(2**32).sub_(order)

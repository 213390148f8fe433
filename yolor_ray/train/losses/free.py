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
DISTRIBUTION_SHARE = 0.05
"""Factor of the cross-entropy of each distance's bins within the term `box`, beside 1 - CIoU."""
LAST_RANK = 2**62
"""Rank behind those of all numbers."""
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
    outputs, logits = head.split_outputs(concatenate_levels(raw).float())
    with torch.no_grad():
        predicted_ltrb = torch.addcmul(grid.centres_ltrb, head.mean_distances(outputs), grid.strides[:, None])
        matches, scores = assign(predicted_ltrb, logits.sigmoid(), targets, grid)
    total = scores.sum().clamp(min=1)
    terms = {
        "box": _box_losses(outputs, targets, matches, head) @ scores / (total / (gains.box * BOX_SCALE)),
        "cls": _class_loss(logits, scores, targets, matches, class_weights) / (total / (gains.cls * CLS_SCALE)),
    }
    return terms, matches


def _box_losses(outputs: Float[Tensor, "B P 4 R"], targets: Targets, matches: Matches, head: FreeHead) -> Float[Tensor, "M"]:
    """Return 1 - CIoU of each pair, and with bins the cross-entropy of the distances too."""
    matched, expected = matches.gather(outputs), true_distances(targets.boxes_ltrb, matches)
    losses = 1 - complete_iou(head.mean_distances(matched), expected)
    return losses if head.bins == 1 else losses.add(distribution_loss(matched, expected), alpha=DISTRIBUTION_SHARE)


def true_distances(boxes_ltrb: Float[Tensor, "N 4"], matches: Matches) -> Float[Tensor, "M 4"]:
    """Return the distances from the centre of each prediction's cell to the sides of its box, below 0 outside of the box; all in cells."""
    grid, predictions = matches.grid, matches.predictions
    return (boxes_ltrb[matches.objects] - grid.centres_ltrb[predictions]) / grid.strides[predictions, None]


def distribution_loss(distances: Float[Tensor, "M 4 R"], expected: Float[Tensor, "M 4"]) -> Float[Tensor, "M"]:
    """Return the cross-entropy of the two bins beside each expected distance, a sum over the four (arXiv 2006.04388, equation 6)."""
    bins = torch.arange(distances.shape[-1], device=distances.device)
    negative_shares = ((expected.clamp(0, len(bins) - 1)[..., None] - bins).abs() - 1).clamp(max=0)
    return (distances.log_softmax(dim=-1) * negative_shares).sum(dim=(1, 2))


def _class_loss(
    logits: Float[Tensor, "B P K"], scores: Float[Tensor, "M"], targets: Targets, matches: Matches, class_weights: Tensor | None
) -> Tensor:
    """Return the summed binary cross-entropy of known classes; where not every object has a box, only assigned predictions count."""
    rows, objects = matches.rows, matches.objects
    learned = scores[:, None] * targets.class_targets(objects, logits.shape[-1])
    expected = torch.zeros_like(logits).flatten(0, 1).index_add_(0, rows, learned).view_as(logits)
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
    boxes_ltrb: Float[Tensor, "B P 4"], scores: Float[Tensor, "B P K"], targets: Targets, grid: Grid
) -> tuple[Matches, Float[Tensor, "M"]]:
    """Assign each box to its best-aligned predictions among the cells whose centre lies in the box.

    A prediction learns the box with which it overlaps most. Of equal predictions or boxes, the first one counts. Returns the matches in
    the order of the boxes, and the target of each class probability, 0..1: the alignment, scaled to the box's best IoU.

    Args:
        boxes_ltrb: predicted boxes as distances from the origin, in pixels.
        scores: predicted class probabilities.
        targets: N boxes.
        grid: the P predictions.
    """
    images = targets.images
    # A CPU computes fast on whole rows of P numbers: x of all predictions, then y, and so on.
    predicted = boxes_ltrb.movedim(2, 0).index_select(1, images).movedim(0, 2)
    score = scores.movedim(2, 1)[images, targets.labels]
    all_iou = complete_iou(predicted, targets.boxes_ltrb[:, None]).clamp(min=0)
    inside = contains(targets.boxes_cxcywh, grid, grid.strides[:1])
    all_alignments = (score**SCORE_POWER * all_iou**IOU_POWER + MIN_ALIGNMENT) * inside
    best = _rank(all_alignments, grid.order).topk(min(PREDICTIONS_PER_BOX, len(grid.order)), dim=1, largest=False).indices
    alignment, iou = all_alignments.gather(1, best), all_iou.gather(1, best)
    rows = torch.add(best, images[:, None], alpha=len(grid.order))
    objects = torch.arange(len(images), device=images.device)[:, None]
    valid = _keep_best_boxes(iou, alignment > 0, rows, objects, boxes_ltrb[..., 0].numel())
    alignment, iou = alignment * valid, iou * valid
    best_alignment, best_iou = (values.amax(dim=1, keepdim=True) for values in (alignment, iou))
    scores = alignment / best_alignment.clamp(min=MIN_ALIGNMENT) * best_iou
    of_pairs, images_of_pairs = (numbers.expand_as(best).flatten() for numbers in (objects, images[:, None]))
    return Matches(valid.flatten(), of_pairs, images_of_pairs, best.flatten(), rows.flatten(), grid), scores.flatten()


def _keep_best_boxes(
    iou: Float[Tensor, "N T"], valid: Bool[Tensor, "N T"], rows: Int[Tensor, "N T"], objects: Int[Tensor, "N 1"], count: int
) -> Bool[Tensor, "N T"]:
    """Return True for the valid pair with the largest IoU of each prediction; `rows` are indices among `count` predictions of the batch."""
    ranks = _rank(iou, objects).where(valid, LAST_RANK + 1)
    best = torch.full((count,), LAST_RANK, device=rows.device).scatter_reduce_(0, rows.flatten(), ranks.flatten(), "amin")
    return ranks == best[rows]


def _rank(values: Float[Tensor, "..."], order: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Return different integers, the lowest for the largest of numbers from 0; of equal numbers, for the first in `order`."""
    # The bits of a float from 0, read as an integer, have the order of the floats.
    return torch.sub(order, values.view(torch.int32).long(), alpha=2**32)

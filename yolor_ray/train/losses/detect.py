"""Loss of the task detect: CIoU of matched boxes, objectness of every cell, classes of matched boxes (YOLOR's reference recipe).

Legend: B images, A anchors per cell, H W cells of a level, L levels, P predictions of an image, K classes, F = 5 + K numbers per
prediction, M matches: as many of each level.
"""

import functools

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from yolor_ray.boxes import complete_iou, ltrb_from_cxcywh
from yolor_ray.config import LossConfig
from yolor_ray.model.heads.detect import DetectHead
from yolor_ray.model.heads.prediction_level import concatenate_levels
from yolor_ray.train.losses.assign import Matches, Targets

LEVEL_BALANCE = {2: (4.0, 1.0), 3: (4.0, 1.0, 0.4), 4: (4.0, 1.0, 0.4, 0.1), 5: (4.0, 1.0, 0.5, 0.4, 0.1)}
"""Weights of the objectness loss per level: fine levels have more cells, so their mean is smaller."""
REFERENCE_CLASSES, MIN_COUNTED_CLASSES = 80, 30
"""The class gain holds for 80 classes and shrinks with the number of classes, but not below the gain for 30.

Measured on blood cells (three classes): the reference's tiny gain left classes confused. AP on the validation set was 0.27 instead of
0.33 after the same 25 epochs.
"""


def detection_losses(
    raw: list[Float[Tensor, "B A _ _ F"]],
    targets: Targets,
    matches: Matches,
    head: DetectHead,
    gains: LossConfig,
    class_weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the weighted terms `box`, `objectness` and `cls`, in float32 for any precision of the network.

    The terms are sums over the levels of means over the matches of a level, or over its predictions. A level without matches still
    learns the background.

    Args:
        raw: raw outputs of the head, (B, A, H, W, F) per level.
        targets: annotations of the B images.
        matches: matches of all levels, as `match_boxes` returns them.
        head: the detection head, with anchors and strides.
        gains: gains of the terms, for three levels and 80 classes.
        class_weights: (K,) weight in `cls` of a box by its class, 1 on average over the boxes; None weighs all boxes equally.
    """
    outputs = concatenate_levels(raw).float()
    matched = matches.gather(outputs)
    predicted_ltrb = ltrb_from_cxcywh(_decode(matched[:, :4], matches, head.anchors))
    ciou = complete_iou(predicted_ltrb, targets.boxes_ltrb[matches.objects])
    levels = len(raw)
    share = 3 / levels
    weights = _objectness_weights(tuple(level[0, ..., 0].numel() for level in raw), outputs.device)
    objectness = _objectness_loss(outputs[..., 4], _objectness_target(outputs, matches, ciou), targets, matches, weights)
    return {
        "box": _sum_of_means(1 - ciou, matches.valid, levels) * gains.box * share,
        "objectness": objectness * gains.objectness * share * (1.4 if levels >= 4 else 1.0),
        "cls": _class_loss(matched[:, 5:], targets, matches, class_weights, levels)
        * (gains.cls * share * max(head.classes, MIN_COUNTED_CLASSES) / REFERENCE_CLASSES),
    }


def _sum_of_means(losses: Float[Tensor, "M *K"], counts: Bool[Tensor, "M *#K"], levels: int) -> Tensor:
    """Return the sum over the levels of the mean of the losses that count; 0 for a level where none counts."""
    counts = counts.expand_as(losses).reshape(levels, -1)
    return ((losses.reshape(levels, -1) * counts).sum(dim=1) / counts.sum(dim=1).clamp(min=1)).sum()


def _decode(outputs: Float[Tensor, "M 4"], matches: Matches, anchors: Float[Tensor, "L A 2"]) -> Float[Tensor, "M 4"]:
    """Return the predicted boxes_cxcywh, in pixels, at the matches."""
    grid, predictions = matches.grid, matches.predictions
    centre, size = (2 * outputs.sigmoid()).chunk(2, dim=-1)
    centre = (centre - 0.5 + grid.cells[predictions]) * grid.strides[predictions, None]
    return torch.cat((centre, size**2 * anchors.flatten(0, 1)[grid.anchors[predictions]]), dim=-1)


def _objectness_target(outputs: Float[Tensor, "B P F"], matches: Matches, ciou: Float[Tensor, "M"]) -> Float[Tensor, "B P"]:
    """Return the objectness target: the CIoU of the match, the highest if several boxes share a prediction, 0 elsewhere."""
    target = outputs.new_zeros(outputs.shape[:2])
    learned = ciou.detach().clamp(min=0) * matches.valid
    return target.flatten().scatter_reduce(0, matches.rows, learned, "amax").view_as(target)


def _objectness_loss(
    logits: Float[Tensor, "B P"], target: Float[Tensor, "B P"], targets: Targets, matches: Matches, weights: Float[Tensor, "P"]
) -> Tensor:
    """Return the weighted binary cross-entropy of matched predictions and of known background, a mean over images of known background."""
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none") * weights
    if targets.all_background_known:
        return losses.sum() / len(logits)
    known = targets.background_known(matches.grid, len(logits), matches.grid.strides)
    matched = torch.zeros_like(target).flatten().index_add(0, matches.rows, matches.valid.to(target.dtype)).view_as(target)
    images = len(logits) if targets.boxes_known is None else targets.boxes_known.sum().clamp(min=1)
    return (losses * (known | (matched > 0))).sum() / images


@functools.lru_cache(maxsize=64)
def _objectness_weights(predictions: tuple[int, ...], device: torch.device) -> Float[Tensor, "P"]:
    """Return the weight of each prediction's objectness loss: that of its level, divided by the number of predictions of the level."""
    # A tensor that validation makes in inference mode could not be used for gradients later.
    with torch.inference_mode(False):
        levels = zip(predictions, LEVEL_BALANCE[len(predictions)], strict=True)
        return torch.cat([torch.full((count,), weight / count) for count, weight in levels]).to(device)


def _class_loss(logits: Float[Tensor, "M K"], targets: Targets, matches: Matches, class_weights: Tensor | None, levels: int) -> Tensor:
    """Return the sum over the levels of the mean binary cross-entropy of the known classes of the matches."""
    classes = logits.shape[1]
    if classes == 1:
        return logits.sum() * 0
    weights = None if class_weights is None else class_weights[targets.labels[matches.objects], None]
    losses = F.binary_cross_entropy_with_logits(logits, targets.class_targets(matches.objects, classes), weights, reduction="none")
    counts = matches.valid[:, None]
    if targets.classes_known is not None:
        counts = counts & targets.classes_known[matches.images]
    return _sum_of_means(losses, counts, levels)

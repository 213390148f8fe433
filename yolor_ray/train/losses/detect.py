"""Loss of the task detect: CIoU of matched boxes, objectness of every cell, classes of matched boxes (YOLOR's reference recipe).

Legend: B images, A anchors per cell, H W cells of a level, K classes, F = 5 + K numbers per anchor, M matches of a level.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from yolor_ray.boxes import complete_iou
from yolor_ray.config import LossConfig
from yolor_ray.model.heads.detect import DetectHead
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
    matches: list[Matches],
    head: DetectHead,
    gains: LossConfig,
    class_weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the weighted terms `box`, `objectness` and `cls`, in float32 for any precision of the network.

    Args:
        raw: raw outputs of the head, (B, A, H, W, F) per level.
        targets: annotations of the B images.
        matches: matches of each level.
        head: the detection head, with anchors and strides.
        gains: gains of the terms, for three levels and 80 classes.
        class_weights: (K,) weight in `cls` of a box by its class, 1 on average over the boxes; None weighs all boxes equally.
    """
    losses = [
        _level_losses(level, targets, matched, head, index, class_weights)
        for index, (level, matched) in enumerate(zip(raw, matches, strict=True))
    ]
    box, objectness, classes = (torch.stack(term) for term in zip(*losses, strict=True))
    levels = len(raw)
    share = 3 / levels
    balance = torch.tensor(LEVEL_BALANCE[levels], device=box.device)
    return {
        "box": box.sum() * gains.box * share,
        "objectness": (objectness * balance).sum() * gains.objectness * share * (1.4 if levels >= 4 else 1.0),
        "cls": classes.sum() * gains.cls * share * max(head.classes, MIN_COUNTED_CLASSES) / REFERENCE_CLASSES,
    }


def _level_losses(
    level: Tensor, targets: Targets, matches: Matches, head: DetectHead, index: int, class_weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return box, objectness and class loss of one level; a level without matches still learns the background."""
    level = level.float()
    matched = level[matches.images, matches.anchors, matches.rows, matches.columns]
    ciou = complete_iou(_decode(matched, matches, head.anchors[index], head.strides[index]), targets.boxes_cxcywh[matches.objects])
    objectness = _objectness_loss(level[..., 4], _objectness_target(level, matches, ciou), targets, matches, head.strides[index])
    if len(matched) == 0:
        return matched.sum(), objectness, matched.sum()
    return (1 - ciou).mean(), objectness, _class_loss(matched, targets, matches, class_weights)


def _objectness_loss(
    logits: Float[Tensor, "B A H W"], target: Float[Tensor, "B A H W"], targets: Targets, matches: Matches, stride: int
) -> Tensor:
    """Return the binary cross-entropy of matched cells and of known background, as a mean over images whose background is known."""
    if targets.boxes_known is None and targets.unsure_images is None:
        return F.binary_cross_entropy_with_logits(logits, target)
    known = targets.background_known([(logits.shape[2], logits.shape[3])], [stride], len(logits))
    counts = known.view(len(logits), 1, *logits.shape[2:]).expand_as(logits).clone()
    counts[matches.images, matches.anchors, matches.rows, matches.columns] = True
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none") * counts
    images = len(logits) if targets.boxes_known is None else targets.boxes_known.sum().clamp(min=1)
    return losses.sum() / (images * logits[0].numel())


def _decode(matched: Float[Tensor, "M F"], matches: Matches, anchors: Float[Tensor, "A 2"], stride: int) -> Float[Tensor, "M 4"]:
    """Return the predicted boxes_cxcywh, in pixels, at the matches."""
    cells = torch.stack((matches.columns, matches.rows), dim=-1)
    centre = (2 * matched[:, :2].sigmoid() - 0.5 + cells) * stride
    size = (2 * matched[:, 2:4].sigmoid()) ** 2 * anchors[matches.anchors]
    return torch.cat((centre, size), dim=-1)


def _objectness_target(level: Tensor, matches: Matches, ciou: Float[Tensor, "M"]) -> Float[Tensor, "B A H W"]:
    """Return the objectness target: the CIoU of the match, the highest if several boxes share a cell and anchor, 0 elsewhere."""
    b, a, h, w, _ = level.shape
    flat = ((matches.images * a + matches.anchors) * h + matches.rows) * w + matches.columns
    target = torch.zeros(b * a * h * w, device=level.device)
    return target.scatter_reduce(0, flat, ciou.detach().clamp(min=0), "amax").view(b, a, h, w)


def _class_loss(matched: Float[Tensor, "M F"], targets: Targets, matches: Matches, class_weights: Tensor | None) -> Tensor:
    """Return the binary cross-entropy as a mean over the known classes of the matches."""
    classes = matched.shape[1] - 5
    if classes == 1:
        return matched[:, 5:].sum() * 0
    weights = None if class_weights is None else class_weights[targets.labels[matches.objects], None]
    losses = F.binary_cross_entropy_with_logits(matched[:, 5:], targets.class_targets(matches.objects, classes), weights, reduction="none")
    return losses.mean() if targets.classes_known is None else losses[targets.classes_known[matches.images]].mean()

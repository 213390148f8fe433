"""The losses of both detection heads by loops over images, boxes and cells: slow, and as plain as the rules."""

import math
from itertools import chain, product

import torch
from torch import Tensor
from torch.nn import functional as F

from plain_boxes import plain_ciou
from yolor_ray.config import LossConfig
from yolor_ray.model.heads.detect import DetectHead
from yolor_ray.model.heads.free import FreeHead
from yolor_ray.train.losses.assign import Targets

LEVEL_BALANCE = {2: (4.0, 1.0), 3: (4.0, 1.0, 0.4), 4: (4.0, 1.0, 0.4, 0.1), 5: (4.0, 1.0, 0.5, 0.4, 0.1)}
Place = tuple[int, ...]


def is_inside(x: float, y: float, box: list[float], smallest: float) -> bool:
    return abs(x - box[0]) <= max(box[2], smallest) / 2 and abs(y - box[1]) <= max(box[3], smallest) / 2


def is_background(image: int, x: float, y: float, targets: Targets, smallest: float) -> bool:
    """Return True if a cell with this centre is background unless it learns a box."""
    if targets.boxes_known is not None and not targets.boxes_known[image]:
        return False
    if targets.unsure_images is None:
        return True
    unsure = zip(targets.unsure_images.tolist(), targets.unsure_cxcywh.tolist(), strict=True)
    return not any(other == image and is_inside(x, y, box, smallest) for other, box in unsure)


def class_losses(logits: Tensor, box: int, targets: Targets, score: float = 1.0) -> Tensor:
    """Return the binary cross-entropy of each known class of a prediction that learns a box."""
    hard = F.one_hot(targets.labels[box], len(logits)).float()
    expected = score * (hard if targets.soft_labels is None else targets.soft_labels[box])
    losses = F.binary_cross_entropy_with_logits(logits, expected, reduction="none")
    known = slice(None) if targets.classes_known is None else targets.classes_known[targets.images[box]]
    return losses[known]


def cells_of(box: list[float], stride: int, width: int, height: int) -> list[tuple[int, int]]:
    """Return the column and row of each cell that learns the box."""
    x, y = box[0] / stride, box[1] / stride
    cells = [(math.floor(x), math.floor(y))]
    for axis, (value, size) in enumerate(((x, width), (y, height))):
        step = -1 if value % 1 < 0.5 and value > 1 else 1 if value % 1 > 0.5 and value < size - 1 else 0
        if step:
            cells.append((cells[0][0] + step * (axis == 0), cells[0][1] + step * (axis == 1)))
    return [(min(max(column, 0), width - 1), min(max(row, 0), height - 1)) for column, row in cells]


def anchor_losses(
    raw: list[Tensor], targets: Targets, head: DetectHead, gains: LossConfig, class_weights: Tensor | None
) -> dict[str, Tensor]:
    """Return the weighted terms of the head with anchors."""
    box_loss = objectness_loss = class_loss = torch.stack([level.sum() for level in raw]).sum() * 0
    for level, stride, anchors, balance in zip(raw, head.strides, head.anchors.tolist(), LEVEL_BALANCE[len(raw)], strict=True):
        box_losses, of_classes = [], []
        objectness: dict[Place, float] = {}
        images, _, height, width, _ = level.shape
        for n, box in enumerate(targets.boxes_cxcywh.tolist()):
            for a, anchor in enumerate(anchors):
                ratios = [side / size for side, size in zip(box[2:], anchor, strict=True)]
                if max(*ratios, *(1 / ratio for ratio in ratios)) >= gains.anchor_ratio:
                    continue
                for column, row in cells_of(box, stride, width, height):
                    place = int(targets.images[n]), a, row, column
                    y = level[place]
                    centre = (2 * y[:2].sigmoid() - 0.5 + torch.tensor([column, row])) * stride
                    size = (2 * y[2:4].sigmoid()) ** 2 * torch.tensor(anchor)
                    ciou = plain_ciou(torch.cat((centre, size))[None], targets.boxes_cxcywh[n][None])[0]
                    box_losses.append(1 - ciou)
                    objectness[place] = max(objectness.get(place, 0.0), ciou.item())
                    weight = 1.0 if class_weights is None else class_weights[targets.labels[n]]
                    of_classes += list(class_losses(y[5:], n, targets) * weight)
        terms = []
        for place in product(range(images), range(len(anchors)), range(height), range(width)):
            x, y = ((place[3] + 0.5) * stride, (place[2] + 0.5) * stride)
            if place in objectness or is_background(place[0], x, y, targets, stride):
                terms.append(F.binary_cross_entropy_with_logits(level[place][4], torch.tensor(objectness.get(place, 0.0))))
        counted = images if targets.boxes_known is None else max(int(targets.boxes_known.sum()), 1)
        objectness_loss = objectness_loss + balance * sum(terms) / (counted * len(anchors) * height * width)
        box_loss = box_loss + (torch.stack(box_losses).mean() if box_losses else 0)
        class_loss = class_loss + (torch.stack(of_classes).mean() if of_classes and head.classes > 1 else 0)
    share = 3 / len(raw)
    return {
        "box": box_loss * gains.box * share,
        "objectness": objectness_loss * gains.objectness * share * (1.4 if len(raw) >= 4 else 1.0),
        "cls": class_loss * gains.cls * share * max(head.classes, 30) / 80,
    }


def free_assignment(
    boxes_cxcywh: Tensor, scores: Tensor, centres: list[list[float]], targets: Targets, smallest: float
) -> dict[Place, tuple[int, float]]:
    """Return object and target score by image and prediction."""
    alignments: dict[Place, float] = {}
    ious: dict[Place, float] = {}
    chosen: dict[Place, int] = {}
    for n, (image, label, box) in enumerate(zip(targets.images.tolist(), targets.labels.tolist(), targets.boxes_cxcywh, strict=True)):
        pairs = []
        for p, (x, y) in enumerate(centres):
            if is_inside(x, y, box.tolist(), smallest):
                iou = plain_ciou(boxes_cxcywh[image, p][None], box[None])[0].clamp(min=0)
                alignment = scores[image, p, label] ** 0.5 * iou**6 + 1e-9
                ious[n, p], alignments[n, p] = iou.item(), alignment.item()
                pairs.append((-alignments[n, p], p))
        for _, p in sorted(pairs)[:10]:
            if (image, p) not in chosen or ious[n, p] > ious[chosen[image, p], p]:
                chosen[image, p] = n
    best_alignment = {n: max(alignments[n, p] for (_, p), m in chosen.items() if m == n) for n in chosen.values()}
    best_iou = {n: max(ious[n, p] for (_, p), m in chosen.items() if m == n) for n in chosen.values()}
    return {place: (n, alignments[n, place[1]] / best_alignment[n] * best_iou[n]) for place, n in chosen.items()}


def free_losses(raw: list[Tensor], targets: Targets, head: FreeHead, gains: LossConfig, class_weights: Tensor | None) -> dict[str, Tensor]:
    """Return the weighted terms of the head without anchors."""
    outputs = torch.cat([level.flatten(1, 3) for level in raw], dim=1)
    levels = [product(range(level.shape[2]), range(level.shape[3]), [stride]) for level, stride in zip(raw, head.strides, strict=True)]
    cells = list(chain(*levels))
    centres = [[(column + 0.5) * stride, (row + 0.5) * stride] for row, column, stride in cells]
    boxes_cxcywh, scores = head.decode(raw)
    assigned = free_assignment(boxes_cxcywh.detach(), scores.detach(), centres, targets, head.strides[0])
    box_loss = class_loss = outputs.sum() * 0
    for image, (p, (x, y)) in product(range(len(outputs)), enumerate(centres)):
        logits = outputs[image, p, 4 * head.bins :]
        if (image, p) not in assigned:
            known = slice(None) if targets.classes_known is None else targets.classes_known[image]
            if is_background(image, x, y, targets, head.strides[0]):
                class_loss = (
                    class_loss + F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits), reduction="none")[known].sum()
                )
            continue
        n, score = assigned[image, p]
        weight = 1.0 if class_weights is None else class_weights[targets.labels[n]]
        class_loss = class_loss + class_losses(logits, n, targets, score).sum() * weight
        box = targets.boxes_cxcywh[n]
        loss = 1 - plain_ciou(boxes_cxcywh[image, p][None], box[None])[0]
        if head.bins > 1:
            loss = loss + 0.2 * distance_loss(outputs[image, p, : 4 * head.bins].view(4, -1), box, x, y, cells[p][2])
        box_loss = box_loss + loss * score
    total = max(sum(score for _, score in assigned.values()), 1)
    return {"box": box_loss / total * gains.box * 150, "cls": class_loss / total * gains.cls * 10 / 3}


def distance_loss(logits: Tensor, box: Tensor, x: float, y: float, stride: int) -> Tensor:
    """Return the mean cross-entropy of the two bins beside the distance to each side of a box."""
    left, top, right, bottom = x - (box[0] - box[2] / 2), y - (box[1] - box[3] / 2), box[0] + box[2] / 2 - x, box[1] + box[3] / 2 - y
    losses = []
    for bins, distance in zip(logits, (left, top, right, bottom), strict=True):
        expected = min(max(distance.item() / stride, 0), len(bins) - 1)
        lower = min(math.floor(expected), len(bins) - 2)
        logs = bins.log_softmax(dim=0)
        losses.append(-(logs[lower] * (lower + 1 - expected) + logs[lower + 1] * (expected - lower)))
    return torch.stack(losses).mean()

"""Losses of the tasks beside detection, by task name, and the loss terms of a network.

A loss takes the raw outputs of its head, the targets, the matches and the network, and returns one number. The number is
a mean over the annotated items, so batches with few annotations of a task count as much as others. A task without annotations
has loss 0 but gives every parameter of its head a gradient: distributed workers must agree on the parameters with gradients.
"""

from collections.abc import Callable

from torch import Tensor

from yolor_ray.config import LossConfig
from yolor_ray.model.heads.detect import DetectHead
from yolor_ray.model.heads.detection_head import DetectionHead
from yolor_ray.model.heads.free import FreeHead
from yolor_ray.model.network import Yolor
from yolor_ray.train.losses.assign import Matches, Targets, match_boxes
from yolor_ray.train.losses.classify import classify_loss
from yolor_ray.train.losses.detect import detection_losses
from yolor_ray.train.losses.embed import embed_loss
from yolor_ray.train.losses.free import free_losses
from yolor_ray.train.losses.grid import grid_of
from yolor_ray.train.losses.pose import pose_loss
from yolor_ray.train.losses.segment import segment_loss

TaskLoss = Callable[[list[Tensor], Targets, Matches, Yolor], Tensor]

LOSSES: dict[str, TaskLoss] = {"classify": classify_loss, "embed": embed_loss, "segment": segment_loss, "pose": pose_loss}
"""Loss of each task beside detection."""


def loss_terms(
    raw: dict[str, list[Tensor]], targets: Targets, network: Yolor, gains: LossConfig, class_weights: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the terms of the loss: `box`, `objectness` (with anchors), `cls`, and one term per other task under its name.

    Each term is a mean over the images of one dataset, in float32 for any precision of the network; the means of the datasets of a union
    count by their images in the batch. An image therefore weighs as much as in a training on its dataset alone. The terms of detection
    are weighted by their gains, those of other tasks are weighted later, by `optim.task_balance`.

    Args:
        raw: raw outputs by task, as `Yolor.forward` returns them.
        targets: annotations of the batch.
        network: the network.
        gains: weights of detection's terms.
        class_weights: (K,) weight in `cls` of a box by its class, 1 on average over the boxes; None weighs all boxes equally.
    """
    if targets.members is None:
        return _dataset_terms(raw, targets, network, gains, class_weights)
    totals: dict[str, Tensor] = {}
    for member in targets.members.unique():
        [chosen] = (targets.members == member).nonzero(as_tuple=True)
        outputs = {task: [output[chosen] for output in levels] for task, levels in raw.items()}
        terms = _dataset_terms(outputs, targets.of_images(chosen), network, gains, class_weights)
        totals = {name: totals.get(name, 0) + term * (len(chosen) / len(targets.members)) for name, term in terms.items()}
    return totals


def _dataset_terms(
    raw: dict[str, list[Tensor]], targets: Targets, network: Yolor, gains: LossConfig, class_weights: Tensor | None
) -> dict[str, Tensor]:
    """Return the terms of the loss of images of one dataset."""
    terms, matches = _detection_terms(raw["detect"], targets, network.head, gains, class_weights)
    return terms | {task: LOSSES[task](raw[task], targets, matches, network) for task in network.tasks}


def _detection_terms(
    raw: list[Tensor], targets: Targets, head: DetectionHead, gains: LossConfig, class_weights: Tensor | None
) -> tuple[dict[str, Tensor], Matches]:
    """Return the terms of the detection head, and the matches of boxes and predictions."""
    if isinstance(head, FreeHead):
        return free_losses(raw, targets, head, gains, class_weights)
    assert isinstance(head, DetectHead)
    matches = match_boxes(targets, head.anchors, grid_of(raw, head.strides), anchor_ratio=gains.anchor_ratio)
    return detection_losses(raw, targets, matches, head, gains, class_weights), matches

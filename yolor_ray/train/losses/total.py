"""List the losses of the tasks beside detection, and add up all that a network has to learn.

A loss takes what its head says, the targets, the matches of each level and the network, and returns one number: a mean over what is
annotated, so that batches with few annotations of a task teach it as much as others. It is 0 where nothing is annotated, and still
reaches every parameter of its head, as workers that train together have to agree on what has a gradient.
"""

from collections.abc import Callable

from torch import Tensor

from yolor_ray.config import LossConfig
from yolor_ray.model.network import Yolor
from yolor_ray.train.losses.assign import Matches, Targets, match_level
from yolor_ray.train.losses.classify import classify_loss
from yolor_ray.train.losses.detect import detection_losses
from yolor_ray.train.losses.embed import embed_loss
from yolor_ray.train.losses.pose import pose_loss
from yolor_ray.train.losses.segment import segment_loss

TaskLoss = Callable[[list[Tensor], Targets, list[Matches], Yolor], Tensor]

LOSSES: dict[str, tuple[TaskLoss, Callable[[LossConfig], float]]] = {
    "classify": (classify_loss, lambda gains: gains.classify),
    "embed": (embed_loss, lambda gains: gains.embed),
    "segment": (segment_loss, lambda gains: gains.segment),
    "pose": (pose_loss, lambda gains: gains.pose),
}
"""The loss of each task, and its gain."""


def loss_parts(raw: dict[str, list[Tensor]], targets: Targets, network: Yolor, gains: LossConfig) -> dict[str, Tensor]:
    """Return the weighted parts of the loss, means over the batch: `box`, `objectness`, `classes`, and one by the name of each other task.

    Their sum is what is learned from. Computed in float32 whatever the precision of the network.
    """
    matches = [
        match_level(targets, anchors, stride, *level.shape[2:4], anchor_ratio=gains.anchor_ratio)
        for level, anchors, stride in zip(raw["detect"], network.head.anchors, network.head.strides, strict=True)
    ]
    parts = detection_losses(raw["detect"], targets, matches, network.head, gains)
    for task in network.tasks:
        silent = sum(part.float().sum() for part in raw[task]) * 0
        loss, gain = LOSSES[task]
        parts[task] = loss(raw[task], targets, matches, network) * gain(gains) + silent
    return parts

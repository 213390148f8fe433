"""Loss of the task pose: distances of keypoints on the scale of COCO's keypoint similarity, and visibility.

Legend: B images, A anchors per cell, H W cells of a level, M matches, J keypoints.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from yolor_ray.model.heads.pose import decode_keypoints
from yolor_ray.model.network import Yolor
from yolor_ray.train.losses.assign import Matches, Targets

SIGMA = 0.05
"""COCO's per-keypoint constant, here one for all: similarity falls with distance / (2 · sigma · object size)."""


def pose_loss(raw: list[Tensor], targets: Targets, matches: Matches, network: Yolor) -> Tensor:
    """Return the mean distance loss of labelled keypoints plus the mean binary cross-entropy of visibility.

    Objects without a labelled keypoint are ignored. `raw` holds the outputs of the head, (B, A, H, W, 3J) per level.
    """
    assert targets.keypoints is not None
    offsets, logits = matches.gather_levels(raw).unflatten(-1, (-1, 3)).split((2, 1), dim=-1)
    expected, boxes_cxcywh = targets.keypoints[matches.objects], targets.boxes_cxcywh[matches.objects]
    labelled = (expected[..., 2] > 0) & matches.valid[:, None]
    # An object without annotated keypoints is unknown; its keypoints are not hidden.
    annotated = (expected[..., 2] >= 0) & labelled.any(dim=-1, keepdim=True)
    areas = boxes_cxcywh[:, 2] * boxes_cxcywh[:, 3]
    distances = _distance_losses(offsets, expected[..., :2], areas, matches, network) * labelled
    visibility = F.binary_cross_entropy_with_logits(logits[..., 0], labelled.float(), weight=annotated.float(), reduction="sum")
    return distances.sum() / labelled.sum().clamp(min=1) + visibility / annotated.sum().clamp(min=1)


def _distance_losses(
    offsets: Float[Tensor, "M J 2"], expected: Float[Tensor, "M J 2"], areas: Float[Tensor, "M"], matches: Matches, network: Yolor
) -> Float[Tensor, "M J"]:
    """Return log(1 + e), where COCO's similarity is exp(-e): the gradient stays useful for distant keypoints, where exp(-e) is flat."""
    grid, predictions = matches.grid, matches.predictions
    anchors = network.head.anchors.flatten(0, 1)[grid.anchors[predictions]]
    points = decode_keypoints(offsets, grid.cells[predictions], anchors, grid.strides[predictions].view(-1, 1, 1))
    squares = (points - expected).square().sum(dim=-1)
    return torch.log1p(squares / (2 * (2 * SIGMA) ** 2 * areas[:, None].clamp(min=1)))

"""Loss of the task pose: distances of keypoints on the scale of COCO's keypoint similarity, and visibility.

Legend: B images, A anchors per cell, H W cells of a level, M matches of all levels, J keypoints.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from yolor_ray.model.heads.pose import decode_keypoints
from yolor_ray.model.network import Yolor
from yolor_ray.train.losses.assign import Matches, Targets, gather_matches

SIGMA = 0.05
"""COCO's per-keypoint constant, here one for all: similarity falls with distance / (2 · sigma · object size)."""


def pose_loss(raw: list[Tensor], targets: Targets, matches: list[Matches], network: Yolor) -> Tensor:
    """Return the mean distance loss of labelled keypoints plus the mean binary cross-entropy of visibility.

    Objects without a labelled keypoint are ignored. `raw` holds the outputs of the head, (B, A, H, W, 3J) per level.
    """
    assert targets.keypoints is not None
    predicted = gather_matches(raw, matches).unflatten(-1, (-1, 3))
    objects = torch.cat([level.objects for level in matches])
    expected, areas = targets.keypoints[objects], targets.boxes_cxcywh[objects, 2:].prod(dim=-1)
    labelled = expected[..., 2] > 0
    # An object without annotated keypoints is unknown; its keypoints are not hidden.
    annotated = (expected[..., 2] >= 0) & labelled.any(dim=-1, keepdim=True)
    distances = _distance_losses(predicted[..., :2], expected[..., :2], areas, matches, network) * labelled
    logits, weight = predicted[..., 2], annotated.to(predicted.dtype)
    visibility = F.binary_cross_entropy_with_logits(logits, labelled.to(predicted.dtype), weight=weight, reduction="sum")
    return distances.sum() / labelled.sum().clamp(min=1) + visibility / annotated.sum().clamp(min=1)


def _distance_losses(
    offsets: Float[Tensor, "M J 2"], expected: Float[Tensor, "M J 2"], areas: Float[Tensor, "M"], matches: list[Matches], network: Yolor
) -> Float[Tensor, "M J"]:
    """Return log(1 + e), where COCO's similarity is exp(-e): the gradient stays useful for distant keypoints, where exp(-e) is flat."""
    cells = torch.cat([torch.stack((m.columns, m.rows), dim=-1) for m in matches])
    anchors = torch.cat([network.head.anchors[level][m.anchors] for level, m in enumerate(matches)])
    strides = torch.cat([torch.full_like(m.rows, stride) for stride, m in zip(network.head.strides, matches, strict=True)])
    points = decode_keypoints(offsets, cells.float(), anchors, strides.float().view(-1, 1, 1))
    squares = (points - expected).square().sum(dim=-1)
    return torch.log1p(squares / (2 * (2 * SIGMA) ** 2 * areas[:, None].clamp(min=1)))

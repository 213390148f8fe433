"""Compute the loss of keypoints: how far they are from where they belong, as COCO's keypoint similarity measures it, and their visibility.

Legend: M matches of all levels, J keypoints.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from yolor_ray.model.heads.pose import place_points
from yolor_ray.model.network import Yolor
from yolor_ray.train.losses.assign import Matches, Targets, at_matches

SIGMA = 0.05
"""Of every keypoint: similarity falls with distance / (2 · sigma · size of the object)."""


def pose_loss(raw: list[Tensor], targets: Targets, matches: list[Matches], network: Yolor) -> Tensor:
    """Return the mean distance loss of labelled keypoints and the mean BCE of visibility; objects without any labelled one do not count."""
    assert targets.keypoints is not None
    said = at_matches(raw, matches).unflatten(-1, (-1, 3))
    wanted = targets.keypoints[torch.cat([level.objects for level in matches])]
    labelled = wanted[..., 2] > 0
    # An object that nobody has marked tells nothing, not that its keypoints are hidden.
    known = (wanted[..., 2] >= 0) & labelled.any(dim=-1, keepdim=True)
    far = _distances(said[..., :2], wanted[..., :2], matches, network) * labelled
    visibility = F.binary_cross_entropy_with_logits(said[..., 2], labelled.to(said.dtype), weight=known.to(said.dtype), reduction="sum")
    return far.sum() / labelled.sum().clamp(min=1) + visibility / known.sum().clamp(min=1)


def _distances(
    offsets: Float[Tensor, "M J 2"], wanted: Float[Tensor, "M J 2"], matches: list[Matches], network: Yolor
) -> Float[Tensor, "M J"]:
    """Return log(1 + e), where COCO's similarity is exp(-e): far keypoints are still drawn closer, where the similarity is flat."""
    cells = torch.cat([torch.stack((m.columns, m.rows), dim=-1) for m in matches])
    anchors = torch.cat([network.head.anchors[level][m.anchors] for level, m in enumerate(matches)])
    strides = torch.cat([torch.full_like(m.rows, stride) for stride, m in zip(network.head.strides, matches, strict=True)])
    places = place_points(offsets, cells.float(), anchors, strides.float().view(-1, 1, 1))
    areas = torch.cat([m.boxes_cxcywh[:, 2:].prod(dim=-1) for m in matches])
    squares = (places - wanted).square().sum(dim=-1)
    return torch.log1p(squares / (2 * (2 * SIGMA) ** 2 * areas[:, None].clamp(min=1)))

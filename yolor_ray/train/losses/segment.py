"""Loss of the task segment, on sample points in and around each box: the cost does not grow with the image.

Legend: B images, A anchors per cell, H W cells of a level or of the prototypes, C prototypes, M matches, S selected matches,
Q points per match.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from yolor_ray.model.network import Yolor
from yolor_ray.train.losses.assign import Matches, Targets

POINTS_PER_SIDE = 20
"""Sample points per side of the grid over a box; Q is the square."""
MARGIN = 1.2
"""Size of the sampled area relative to the box; the mask must be empty in the rim of a box that is predicted slightly too large."""
MATCHES_PER_IMAGE = 64
"""Maximum matches that learn their masks in one step, on average over the batch."""
PROTOTYPE_PX = 4
"""Input pixels per cell of the prototypes; the instance map is finer, so prototypes learn the position of an edge inside a cell."""


def segment_loss(raw: list[Tensor], targets: Targets, matches: Matches, _: Yolor) -> Tensor:
    """Return the mean binary cross-entropy plus Dice loss of the matches with a mask, or 0 if there is none.

    `raw` holds the coefficients, (B, A, H, W, C) per level, and last the prototypes (B, C, H, W).
    """
    assert targets.instances is not None and targets.has_mask is not None
    *levels, prototypes = raw
    selected = (matches.valid & targets.has_mask[matches.objects]).nonzero()[:, 0]
    # Evenly spaced matches: a random draw would need its state in every checkpoint. Places for the other matches would cost more than the
    # device waits here for their number.
    selected = selected[:: max(-(-len(selected) // (MATCHES_PER_IMAGE * len(prototypes))), 1)]
    coefficients = matches.gather_levels(levels)[selected]
    objects, images = matches.objects[selected], matches.images[selected]
    points = _sample_points(targets.boxes_cxcywh[objects])
    height, width = targets.instances.shape[1:]
    columns, rows = points.floor().long().unbind(dim=-1)
    inside = ((columns >= 0) & (rows >= 0) & (columns < width) & (rows < height)).float()
    instances = targets.instances[images[:, None], rows.clamp(0, height - 1), columns.clamp(0, width - 1)]
    expected = (instances == objects[:, None] + 1).float()
    logits = torch.einsum("mc,mcq->mq", coefficients, _prototypes_at(prototypes.float(), images, points))
    return _mask_losses(logits, expected, inside).sum() / max(len(selected), 1)


def _sample_points(boxes_cxcywh: Float[Tensor, "S 4"]) -> Float[Tensor, "S Q 2"]:
    """Return a grid of points over each box and its margin, x and y in pixels of the network input."""
    along = (torch.arange(POINTS_PER_SIDE, device=boxes_cxcywh.device) + 0.5) / POINTS_PER_SIDE - 0.5
    grid = torch.cartesian_prod(along, along) * MARGIN
    return boxes_cxcywh[:, None, :2] + grid * boxes_cxcywh[:, None, 2:]


def _prototypes_at(prototypes: Float[Tensor, "B C H W"], images: Int[Tensor, "S"], points: Float[Tensor, "S Q 2"]) -> Tensor:
    """Return the prototypes of each match's image at the match's points, (S, C, Q)."""
    sides = torch.tensor((prototypes.shape[3], prototypes.shape[2]), device=points.device) * PROTOTYPE_PX
    grid = 2 * points / sides - 1
    order = images.argsort(stable=True)
    counts = torch.bincount(images, minlength=len(prototypes)).tolist()
    samples = [
        F.grid_sample(maps[None], image_grid[None], mode="bilinear", padding_mode="border", align_corners=False)[0].transpose(0, 1)
        for maps, image_grid in zip(prototypes, grid[order].split(counts), strict=True)
    ]
    return torch.cat(samples)[order.argsort()]


def _mask_losses(logits: Float[Tensor, "S Q"], expected: Float[Tensor, "S Q"], inside: Float[Tensor, "S Q"]) -> Float[Tensor, "S"]:
    """Return binary cross-entropy plus Dice loss of each mask over the points inside the image; `inside` is 1 or 0."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, expected, reduction="none") * inside
    predicted = logits.sigmoid() * inside
    dice = 1 - (2 * (predicted * expected).sum(dim=1) + 1) / (predicted.sum(dim=1) + (expected * inside).sum(dim=1) + 1)
    return cross_entropy.sum(dim=1) / inside.sum(dim=1).clamp(min=1) + dice

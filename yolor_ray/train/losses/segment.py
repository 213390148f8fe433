"""Compute the loss of instance masks on points in and around each box, so that its cost does not grow with the image.

Legend: B images, C prototypes, M matches of all levels, Q points per match.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from yolor_ray.model.network import Yolor
from yolor_ray.train.losses.assign import Matches, Targets, at_matches

POINTS_PER_SIDE = 20
MARGIN = 1.2
"""Points lie in the box made larger by this factor: a box that is found a little too large must find no mask there."""
MATCHES_PER_IMAGE = 64
"""Most matches that learn their masks in one step, on average over the batch."""
PROTOTYPE_PX = 4
"""Input pixels per cell of the prototypes; the map of instances is finer, so that they learn where inside a cell an edge runs."""


def segment_loss(raw: list[Tensor], targets: Targets, matches: list[Matches], _: Yolor) -> Tensor:
    """Return the mean BCE and Dice loss over matches with a mask, 0 where there is none."""
    assert targets.instances is not None and targets.has_mask is not None
    *levels, prototypes = raw
    objects = torch.cat([level.objects for level in matches])
    chosen = _thinned(targets.has_mask[objects].nonzero()[:, 0], MATCHES_PER_IMAGE * len(prototypes))
    coefficients, objects = at_matches(levels, matches)[chosen], objects[chosen]
    images, places = targets.images[objects], _places(targets.boxes_cxcywh[objects])
    height, width = targets.instances.shape[1:]
    columns, rows = places.floor().long().unbind(dim=-1)
    inside = ((columns >= 0) & (rows >= 0) & (columns < width) & (rows < height)).float()
    seen = targets.instances[images[:, None], rows.clamp(0, height - 1), columns.clamp(0, width - 1)]
    wanted = (seen == objects[:, None] + 1).float()
    logits = torch.einsum("mc,mcq->mq", coefficients, _prototypes_at(prototypes.float(), images, places))
    return _mask_losses(logits, wanted, inside).sum() / max(len(chosen), 1)


def _thinned(chosen: Int[Tensor, "M"], most: int) -> Int[Tensor, "_"]:
    """Return at most so many, evenly spaced: a draw would have to be part of every checkpoint."""
    return chosen[:: max(-(-len(chosen) // most), 1)]


def _places(boxes_cxcywh: Float[Tensor, "M 4"]) -> Float[Tensor, "M Q 2"]:
    """Return a grid of points over each box and its margin, in pixels of the network input."""
    along = (torch.arange(POINTS_PER_SIDE, device=boxes_cxcywh.device) + 0.5) / POINTS_PER_SIDE - 0.5
    grid = torch.cartesian_prod(along, along) * MARGIN
    return boxes_cxcywh[:, None, :2] + grid * boxes_cxcywh[:, None, 2:]


def _prototypes_at(prototypes: Float[Tensor, "B C H W"], images: Int[Tensor, "M"], places: Float[Tensor, "M Q 2"]) -> Tensor:
    """Return the prototypes of each match's image at its points, (M, C, Q)."""
    sides = torch.tensor((prototypes.shape[3], prototypes.shape[2]), device=places.device) * PROTOTYPE_PX
    grid = 2 * places / sides - 1
    order = images.argsort(stable=True)
    counts = torch.bincount(images, minlength=len(prototypes)).tolist()
    parts = [
        F.grid_sample(one[None], part[None], mode="bilinear", padding_mode="border", align_corners=False)[0].transpose(0, 1)
        for one, part in zip(prototypes, grid[order].split(counts), strict=True)
    ]
    return torch.cat(parts)[order.argsort()]


def _mask_losses(logits: Float[Tensor, "M Q"], wanted: Float[Tensor, "M Q"], inside: Float[Tensor, "M Q"]) -> Float[Tensor, "M"]:
    """Return BCE plus Dice loss of each mask over the points inside of the image."""
    each = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none") * inside
    share = logits.sigmoid() * inside
    dice = 1 - (2 * (share * wanted).sum(dim=1) + 1) / (share.sum(dim=1) + (wanted * inside).sum(dim=1) + 1)
    return each.sum(dim=1) / inside.sum(dim=1).clamp(min=1) + dice

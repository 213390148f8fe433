"""Decide which cells and anchors learn which boxes.

Legend: N boxes in the batch, A anchors per cell, M matches of a level, L levels.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

NEIGHBOURS = ((0.0, 0.0), (-1.0, 0.0), (0.0, -1.0), (1.0, 0.0), (0.0, 1.0))
"""Own cell, then left, up, right and down, as (x, y)."""


@dataclass(frozen=True)
class Targets:
    """Hold the boxes of a batch."""

    images: Int[Tensor, "N"]
    """Position of the box's image in the batch."""
    labels: Int[Tensor, "N"]
    boxes_cxcywh: Float[Tensor, "N 4"]
    """Pixels of the network input."""

    def to(self, device: torch.device) -> "Targets":
        """Return the same targets on a device."""
        return Targets(*(part.to(device, non_blocking=True) for part in (self.images, self.labels, self.boxes_cxcywh)))


@dataclass(frozen=True)
class Matches:
    """Hold where one level learns which box: cell and anchor of each match, and the box itself."""

    images: Int[Tensor, "M"]
    anchors: Int[Tensor, "M"]
    rows: Int[Tensor, "M"]
    columns: Int[Tensor, "M"]
    labels: Int[Tensor, "M"]
    boxes_cxcywh: Float[Tensor, "M 4"]


def match_level(targets: Targets, anchors: Float[Tensor, "A 2"], stride: int, height: int, width: int, *, anchor_ratio: float) -> Matches:
    """Match boxes to the anchors whose sides differ by less than `anchor_ratio`, in their own cell and its two nearest neighbours.

    A neighbour left or above joins when the centre lies in the first half of its cell, right or below in the second
    half; cells outside the map do not exist. `anchors` are in pixels, `height` and `width` in cells.
    """
    ratio = targets.boxes_cxcywh[:, None, 2:] / anchors[None]
    box, anchor = (torch.maximum(ratio, 1 / ratio).amax(dim=-1) < anchor_ratio).nonzero(as_tuple=True)
    centres = targets.boxes_cxcywh[box, :2] / stride
    extent = torch.tensor((width, height), device=centres.device, dtype=centres.dtype)
    fraction = centres % 1
    low = (fraction < 0.5) & (centres > 1)
    high = (fraction > 0.5) & (centres < extent - 1)
    joins = torch.stack((torch.ones_like(low[:, 0]), low[:, 0], low[:, 1], high[:, 0], high[:, 1]))
    which, match = joins.nonzero(as_tuple=True)
    offsets = torch.tensor(NEIGHBOURS, device=centres.device, dtype=centres.dtype)[which]
    cells = (centres[match].floor() + offsets).clamp(min=0).minimum(extent - 1).long()
    box = box[match]
    return Matches(targets.images[box], anchor[match], cells[:, 1], cells[:, 0], targets.labels[box], targets.boxes_cxcywh[box])

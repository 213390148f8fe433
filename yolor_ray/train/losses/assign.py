"""Decide which cells and anchors learn which boxes.

Legend: B images, N boxes in the batch, A anchors per cell, M matches of a level (or image labels), J keypoints.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

NEIGHBOURS = ((0.0, 0.0), (-1.0, 0.0), (0.0, -1.0), (1.0, 0.0), (0.0, 1.0))
"""Own cell, then left, up, right and down, as (x, y)."""


@dataclass(frozen=True)
class Targets:
    """Hold what is known about the images of a batch; what no task asks for is None."""

    images: Int[Tensor, "N"]
    """Position of the box's image in the batch."""
    labels: Int[Tensor, "N"]
    boxes_cxcywh: Float[Tensor, "N 4"]
    """Pixels of the network input."""
    boxes_known: Bool[Tensor, "B"] | None = None
    """Images on which every object has its box, so that what has none is background; None if all are."""
    keypoints: Float[Tensor, "N J 3"] | None = None
    """x and y in pixels of the network input; visibility 2 and 1 labelled, 0 not to be seen or not labelled, -1 not known at all."""
    identities: Int[Tensor, "N"] | None = None
    """Which of the training set's individuals it is; -1 unknown."""
    has_mask: Bool[Tensor, "N"] | None = None
    """Whether the mask of an object is known and there is something of it to be seen."""
    instances: Int[Tensor, "B _ _"] | None = None
    """As large as the input: 1 + the number of the object that covers each pixel; 0 none."""
    image_labels: Float[Tensor, "B M"] | None = None
    """1 yes, 0 no, NaN unknown."""

    def to(self, device: torch.device) -> "Targets":
        """Return the same targets on a device."""
        present: dict[str, Any] = {f.name: part for f in fields(self) if (part := getattr(self, f.name)) is not None}
        return replace(self, **{name: part.to(device, non_blocking=True) for name, part in present.items()})

    def scaled(self, factor: float, image_px: int) -> "Targets":
        """Return the targets of the same images resized by a factor to a side of `image_px`."""
        keypoints, instances = self.keypoints, self.instances
        if keypoints is not None:
            keypoints = torch.cat((keypoints[..., :2] * factor, keypoints[..., 2:]), dim=-1)
        if instances is not None:
            size = (image_px, image_px)
            instances = F.interpolate(instances[:, None].float(), size=size, mode="nearest")[:, 0].to(instances.dtype)
        return replace(self, boxes_cxcywh=self.boxes_cxcywh * factor, keypoints=keypoints, instances=instances)


@dataclass(frozen=True)
class Matches:
    """Hold where one level learns which box: cell and anchor of each match, and the box itself."""

    objects: Int[Tensor, "M"]
    """Number of the box among the targets."""
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
    return Matches(box, targets.images[box], anchor[match], cells[:, 1], cells[:, 0], targets.labels[box], targets.boxes_cxcywh[box])


def at_matches(levels: list[Float[Tensor, "B A _ _ F"]], matches: list[Matches]) -> Float[Tensor, "M F"]:
    """Return the numbers of every match, level by level, in float32."""
    found = [level[m.images, m.anchors, m.rows, m.columns] for level, m in zip(levels, matches, strict=True)]
    return torch.cat(found).float()

"""Assign boxes to cells and anchors.

Legend: B images, N boxes in the batch, D unsure boxes, K classes, H W cells of a level, P predictions of an image, A anchors per cell,
F numbers per anchor, M matches of a level (or image labels), J keypoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

NEIGHBOURS = ((0.0, 0.0), (-1.0, 0.0), (0.0, -1.0), (1.0, 0.0), (0.0, 1.0))
"""The cell of the centre, then the left, upper, right and lower neighbour, as (x, y)."""


@dataclass(frozen=True)
class Targets:
    """Annotations of the images of a batch; annotations that no task uses are None."""

    images: Int[Tensor, "N"]
    """Index of the box's image in the batch."""
    labels: Int[Tensor, "N"]
    """Class of the box."""
    boxes_cxcywh: Float[Tensor, "N 4"]
    """Pixels of the network input."""
    boxes_known: Bool[Tensor, "B"] | None = None
    """True for images in which every object has a box, so the rest is background; None if all images are such."""
    classes_known: Bool[Tensor, "B K"] | None = None
    """True for the classes whose objects are annotated in the image; None for all classes of all images."""
    members: Int[Tensor, "B"] | None = None
    """Index of the image's dataset in a union; None if all images are of one dataset."""
    keypoints: Float[Tensor, "N J 3"] | None = None
    """x and y in pixels of the network input; visibility 2 or 1 labelled, 0 not visible or not labelled, -1 unknown."""
    identities: Int[Tensor, "N"] | None = None
    """Identity of the object among the individuals of the training set; -1 unknown."""
    has_mask: Bool[Tensor, "N"] | None = None
    """True if the object's mask is known and not empty."""
    instances: Int[Tensor, "B _ _"] | None = None
    """Instance map in the size of the network input: 1 + the index of the object that covers the pixel; 0 for none."""
    image_labels: Float[Tensor, "B M"] | None = None
    """1 yes, 0 no, NaN unknown."""
    soft_labels: Float[Tensor, "N K"] | None = None
    """Target of each class probability of the box, 0..1; None for 1 of its class and 0 of all others."""
    unsure_images: Int[Tensor, "D"] | None = None
    """Index in the batch of the image of each unsure box; None if there is none."""
    unsure_cxcywh: Float[Tensor, "D 4"] | None = None
    """Boxes that may hold an object, in pixels of the network input: the background inside of them is unknown."""

    def to(self, device: torch.device) -> "Targets":
        """Return the same targets on a device."""
        tensors: dict[str, Any] = {f.name: tensor for f in fields(self) if (tensor := getattr(self, f.name)) is not None}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})

    def of_images(self, chosen: Tensor) -> "Targets":
        """Return the targets of the images at the given indices, int64 and ascending; images and objects are counted anew."""
        inside = torch.isin(self.images, chosen)
        names = "labels", "boxes_cxcywh", "keypoints", "identities", "has_mask", "soft_labels"
        per_object = {name: getattr(self, name) for name in names}
        per_image = {name: getattr(self, name) for name in ("boxes_known", "classes_known", "members", "instances", "image_labels")}
        kept: dict[str, Any] = {name: tensor[inside] for name, tensor in per_object.items() if tensor is not None}
        kept |= {name: tensor[chosen] for name, tensor in per_image.items() if tensor is not None}
        if self.instances is not None:
            numbers = torch.cat((inside.new_zeros(1, dtype=torch.long), inside.cumsum(0) * inside))
            kept["instances"] = numbers[kept["instances"].long()].to(self.instances.dtype)
        if self.unsure_images is not None and self.unsure_cxcywh is not None:
            unsure = torch.isin(self.unsure_images, chosen)
            kept["unsure_images"] = torch.searchsorted(chosen, self.unsure_images[unsure])
            kept["unsure_cxcywh"] = self.unsure_cxcywh[unsure]
        return Targets(torch.searchsorted(chosen, self.images[inside]), **kept)

    def resize(self, factor: float, image_px: int) -> "Targets":
        """Return the targets of the same images resized by a factor to a side of `image_px` pixels."""
        keypoints, instances, unsure_cxcywh = self.keypoints, self.instances, self.unsure_cxcywh
        if keypoints is not None:
            keypoints = torch.cat((keypoints[..., :2] * factor, keypoints[..., 2:]), dim=-1)
        if instances is not None:
            size = (image_px, image_px)
            instances = F.interpolate(instances[:, None].float(), size=size, mode="nearest-exact")[:, 0].to(instances.dtype)
        if unsure_cxcywh is not None:
            unsure_cxcywh = unsure_cxcywh * factor
        boxes_cxcywh = self.boxes_cxcywh * factor
        return replace(self, boxes_cxcywh=boxes_cxcywh, unsure_cxcywh=unsure_cxcywh, keypoints=keypoints, instances=instances)

    def class_targets(self, objects: Int[Tensor, "M"], classes: int) -> Float[Tensor, "M K"]:
        """Return the target of each class probability, 0..1, of the boxes at the given indices."""
        if self.soft_labels is None:
            return F.one_hot(self.labels[objects], classes).float()
        return self.soft_labels[objects]

    def background_known(self, shapes: Sequence[tuple[int, int]], strides: Sequence[int], images: int) -> Bool[Tensor, "B P"]:
        """Return True for predictions that are background if they learn no box.

        Args:
            shapes: rows and columns of each level.
            strides: pixels per cell of each level, the finest first.
            images: B.
        """
        predictions = sum(height * width for height, width in shapes)
        known = torch.ones(images, predictions, dtype=torch.bool, device=self.boxes_cxcywh.device)
        if self.boxes_known is not None:
            known &= self.boxes_known[:, None]
        if self.unsure_images is not None and self.unsure_cxcywh is not None:
            box, prediction = contains(self.unsure_cxcywh, shapes, strides).nonzero(as_tuple=True)
            known[self.unsure_images[box], prediction] = False
        return known


def contains(boxes_cxcywh: Float[Tensor, "N 4"], shapes: Sequence[tuple[int, int]], strides: Sequence[int]) -> Bool[Tensor, "N P"]:
    """Return True where the centre of a prediction's cell lies in a box.

    A box smaller than a cell of the first level counts as large as the cell, so that every box inside the image contains a centre.

    Args:
        boxes_cxcywh: boxes in pixels.
        shapes: rows and columns of each level.
        strides: pixels per cell of each level, the finest first.
    """
    reach, levels = boxes_cxcywh[:, 2:].clamp(min=strides[0]) / 2, []
    for (height, width), stride in zip(shapes, strides, strict=True):
        # Columns and rows are compared by themselves: N · (H + W) numbers instead of N · H · W.
        columns, rows = (
            ((torch.arange(cells, device=reach.device) + 0.5) * stride - boxes_cxcywh[:, axis, None]).abs() <= reach[:, axis, None]
            for axis, cells in ((0, width), (1, height))
        )
        levels.append((rows[:, :, None] & columns[:, None, :]).flatten(1))
    return torch.cat(levels, dim=1)


@dataclass(frozen=True)
class Matches:
    """Matches of a level: a cell and an anchor, and the box that the cell and anchor learn."""

    objects: Int[Tensor, "M"]
    """Index of the box in the targets."""
    images: Int[Tensor, "M"]
    anchors: Int[Tensor, "M"]
    rows: Int[Tensor, "M"]
    columns: Int[Tensor, "M"]


def match_level(targets: Targets, anchors: Float[Tensor, "A 2"], stride: int, height: int, width: int, *, anchor_ratio: float) -> Matches:
    """Match the boxes to anchors of similar size, in the cell of the centre and up to two neighbours.

    An anchor matches if both sides differ from the box's by a factor less than `anchor_ratio`. The left (upper) neighbour joins
    if the centre is in the left (upper) half of its cell. The right (lower) neighbour joins if the centre is in the right (lower)
    half. Cells outside the map do not exist.

    Args:
        targets: N boxes.
        anchors: widths and heights of the level's anchors in pixels.
        stride: pixels per cell.
        height: rows of the level.
        width: columns of the level.
        anchor_ratio: limit of the ratio between box side and anchor side, either way.
    """
    ratio = targets.boxes_cxcywh[:, None, 2:] / anchors[None]
    box, anchor = (torch.maximum(ratio, 1 / ratio).amax(dim=-1) < anchor_ratio).nonzero(as_tuple=True)
    centres = targets.boxes_cxcywh[box, :2] / stride
    extent = torch.tensor((width, height), device=centres.device, dtype=centres.dtype)
    fraction = centres % 1
    low = (fraction < 0.5) & (centres > 1)
    high = (fraction > 0.5) & (centres < extent - 1)
    joins = torch.stack((torch.ones_like(low[:, 0]), low[:, 0], low[:, 1], high[:, 0], high[:, 1]))
    neighbour, match = joins.nonzero(as_tuple=True)
    offsets = torch.tensor(NEIGHBOURS, device=centres.device, dtype=centres.dtype)[neighbour]
    cells = (centres[match].floor() + offsets).clamp(min=0).minimum(extent - 1).long()
    box = box[match]
    return Matches(box, targets.images[box], anchor[match], cells[:, 1], cells[:, 0])


def gather_matches(levels: list[Float[Tensor, "B A _ _ F"]], matches: list[Matches]) -> Float[Tensor, "M F"]:
    """Return the outputs at the matches of all levels, level by level, in float32.

    Args:
        levels: raw outputs, (B, A, H, W, F) per level.
        matches: matches of each level; M counts the matches of all levels.
    """
    gathered = [level[m.images, m.anchors, m.rows, m.columns] for level, m in zip(levels, matches, strict=True)]
    return torch.cat(gathered).float()

"""Assign boxes to cells and anchors.

The numbers of matches and of all other items depend on the number of boxes alone: no tensor is read from the device.
Legend: B images, N boxes in the batch, D unsure boxes, K classes, H W cells of a level, L levels, A anchors per cell, P predictions of an
image, F numbers per prediction, M matches (or image labels), J keypoints.
"""

import functools
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from yolor_ray.boxes import ltrb_from_cxcywh
from yolor_ray.model.heads.prediction_level import concatenate_levels
from yolor_ray.train.losses.grid import Grid, contains


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
            return _one_hot(classes, objects.device)[self.labels[objects]]
        return self.soft_labels[objects]

    @functools.cached_property
    def boxes_ltrb(self) -> Float[Tensor, "N 4"]:
        """Boxes as distances from the origin."""
        return ltrb_from_cxcywh(self.boxes_cxcywh)

    @property
    def all_background_known(self) -> bool:
        """True if every prediction that learns no box is background."""
        return self.boxes_known is None and self.unsure_images is None

    def background_known(self, grid: Grid, images: int, smallest_px: Float[Tensor, "#P"]) -> Bool[Tensor, "B P"]:
        """Return True for predictions that are background if they learn no box.

        Args:
            grid: the P predictions of an image.
            images: B.
            smallest_px: side that a smaller unsure box counts for, see `contains`.
        """
        known = torch.ones(images, len(grid.cells), dtype=torch.bool, device=self.boxes_cxcywh.device)
        if self.boxes_known is not None:
            known = known & self.boxes_known[:, None]
        if self.unsure_images is not None and self.unsure_cxcywh is not None:
            inside = contains(self.unsure_cxcywh, grid, smallest_px).float()
            known = known & (torch.zeros_like(known, dtype=inside.dtype).index_add(0, self.unsure_images, inside) == 0)
        return known


@functools.lru_cache(maxsize=8)
def _one_hot(classes: int, device: torch.device) -> Float[Tensor, "K K"]:
    """Return the targets of each class: 1 for the class, 0 for all others."""
    # A tensor that validation makes in inference mode could not be used for gradients later.
    with torch.inference_mode(False):
        return torch.eye(classes, device=device)


@dataclass(frozen=True)
class Matches:
    """Pairs of a box and a prediction; those that are not valid keep the number of pairs the same, and learn nothing."""

    valid: Bool[Tensor, "M"]
    """True if the prediction learns the box."""
    objects: Int[Tensor, "M"]
    """Index of the box in the targets."""
    images: Int[Tensor, "M"]
    """Index of the box's image in the batch."""
    predictions: Int[Tensor, "M"]
    """Index among the P predictions of the image."""
    rows: Int[Tensor, "M"]
    """Index among the B · P predictions of the batch."""
    grid: Grid
    """Places of the P predictions."""

    def gather(self, outputs: Float[Tensor, "B P *F"]) -> Float[Tensor, "M *F"]:
        """Return the outputs of the predictions, in float32."""
        return outputs.flatten(0, 1).index_select(0, self.rows).float()

    def gather_levels(self, levels: list[Float[Tensor, "B A _ _ F"]]) -> Float[Tensor, "M F"]:
        """Return the raw outputs of the predictions, in float32."""
        return self.gather(concatenate_levels(levels))


def match_boxes(targets: Targets, anchors: Float[Tensor, "L A 2"], grid: Grid, *, anchor_ratio: float) -> Matches:
    """Match the boxes to anchors of similar size, in the cell of the centre and up to two neighbours.

    An anchor matches if both sides differ from the box's by a factor less than `anchor_ratio`. The left (upper) neighbour joins
    if the centre is in the left (upper) half of its cell. The right (lower) neighbour joins if the centre is in the right (lower)
    half. Cells outside the map do not exist. There are M = L · 5 · N · A matches, in this order.

    Args:
        targets: N boxes.
        anchors: widths and heights of the anchors of each level, in pixels.
        grid: the predictions.
        anchor_ratio: limit of the ratio between box side and anchor side, either way.
    """
    centres, sizes = targets.boxes_cxcywh.chunk(2, dim=-1)
    ratio = sizes[:, None] / anchors[:, None]
    fits = torch.maximum(ratio, 1 / ratio).amax(dim=-1) < anchor_ratio
    cells, joins = _nearest_cells(centres / grid.level_strides[:, None, None], grid)
    columns, rows = cells.long().unbind(dim=-1)
    width, height = grid.level_sides.long().unbind(dim=-1)
    anchor = torch.arange(anchors.shape[1], device=anchors.device)
    # Each product has the shape of the matches, (L, 5, N, A).
    starts = grid.level_starts[:, None] + anchor * (width * height)[:, None]
    predictions = starts[:, None, None] + (rows * width[:, None, None] + columns)[..., None]
    valid = joins[..., None] & fits[:, None]
    objects = torch.arange(len(sizes), device=anchors.device)[:, None].expand_as(valid).flatten()
    images, predictions = targets.images[objects], predictions.flatten()
    batch_rows = torch.add(predictions, images, alpha=len(grid.order))
    return Matches(valid.flatten(), objects, images, predictions, batch_rows, grid)


def _nearest_cells(centres: Float[Tensor, "L N 2"], grid: Grid) -> tuple[Float[Tensor, "L 5 N 2"], Bool[Tensor, "L 5 N"]]:
    """Return the cell of each centre and its four neighbours, and True for the cells that learn the box; centres are in cells."""
    last, fraction = grid.level_sides[:, None] - 1, centres % 1
    low, high = (fraction < 0.5) & (centres > 1), (fraction > 0.5) & (centres < last)
    joins = torch.cat((torch.ones_like(low[..., :1]), low, high), dim=-1).movedim(-1, 1)
    cells = centres.floor()[:, None] + grid.neighbours[:, None]
    return cells.clamp(min=0).minimum(last[:, None]), joins

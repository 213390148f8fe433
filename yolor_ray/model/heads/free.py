"""Detection head without anchors: one branch for boxes and one for classes per level, one prediction per cell.

A box is four distances from the centre of its cell (FCOS, arXiv 1904.01355). With R > 1 bins, a distance is the mean of a distribution
over 0, 1, … R - 1 cells (generalized focal loss, arXiv 2006.04388, section 3.2). There is no objectness: a class probability says how
well class and box fit, because training assigns targets of that kind (TOOD, arXiv 2108.07755).
Legend: B images, C channels, H W cells of a level, L levels, K classes, R bins, F = 4 · R + K numbers per cell, P predictions.
"""

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from yolor_ray.config import ImplicitConfig, NetworkConfig
from yolor_ray.model.heads.detection_head import DetectionHead
from yolor_ray.model.heads.prediction_level import (
    MIN_WIDTH,
    PredictionLevel,
    cell_coordinates,
    concatenate_levels,
    neck_channels,
    split_anchors,
)

DISTANCES = 4
"""Distances of a cell: left, top, right, bottom."""
REFERENCE_SIDE = 4
"""Side of a cell's reference box in cells, which is the unit of keypoint offsets."""
OBJECTS_PER_IMAGE_PRIOR = 5
"""Expected objects in a 640 px image before training."""


class FreeHead(DetectionHead):
    """Two prediction levels per feature map of the neck, for boxes and classes.

    The buffer `anchors` (L, 1, 2) holds the side of the reference box of each level, in pixels; boxes do not depend on it.
    """

    def __init__(self, config: NetworkConfig, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.strides = config.strides
        self.bins = config.distance_bins
        boxes = [PredictionLevel(c, c, DISTANCES * self.bins, config) for c in neck_channels(config)]
        scores = [PredictionLevel(c, max(c, MIN_WIDTH), classes, config) for c in neck_channels(config)]
        self.boxes, self.scores = nn.ModuleList(boxes), nn.ModuleList(scores)
        sides = torch.tensor([REFERENCE_SIDE * stride for stride in config.strides], dtype=torch.float32)
        self.register_buffer("anchors", sides.view(-1, 1, 1).expand(-1, 1, 2).contiguous())
        self._add_bias_prior(boxes, scores)

    @property
    def branches(self) -> tuple[nn.ModuleList, ...]:
        """Prediction levels of each branch, in the order of a cell's outputs."""
        return self.boxes, self.scores

    def add_implicit(self, implicit: ImplicitConfig) -> None:
        """Add fresh implicit knowledge to both branches of every level; with `refine_what` "size" only distances are refined (PR*)."""
        of_scores = replace(implicit, refine="none") if implicit.refine_what == "size" else implicit
        for boxes, scores in zip(self.boxes, self.scores, strict=True):
            boxes.add_implicit(implicit)  # type: ignore[operator]
            scores.add_implicit(of_scores)  # type: ignore[operator]

    @torch.no_grad()
    def _add_bias_prior(self, boxes: list[PredictionLevel], scores: list[PredictionLevel]) -> None:
        """Set the biases to boxes of the reference size and to rare objects of equal class probabilities."""
        for box_level, score_level, stride in zip(boxes, scores, self.strides, strict=True):
            assert box_level.predict.bias is not None and score_level.predict.bias is not None
            box_level.predict.bias.copy_(self._distance_bias())
            score_level.predict.bias.fill_(math.log(OBJECTS_PER_IMAGE_PRIOR / self.classes / (640 / stride) ** 2))

    def _distance_bias(self) -> Float[Tensor, "O"]:
        """Return the outputs whose distances are half a reference side: with bins, those of a geometric distribution of that mean."""
        mean = REFERENCE_SIDE / 2
        if self.bins == 1:
            return torch.full((DISTANCES,), math.log(math.expm1(mean)))
        # Integers times a float on the meta device would import torch._dynamo, which takes a second.
        return (torch.arange(self.bins, device="cpu") * math.log(mean / (1 + mean))).repeat(DISTANCES)

    def split_outputs(self, y: Float[Tensor, "*_ F"]) -> tuple[Float[Tensor, "*_ 4 R"], Float[Tensor, "*_ K"]]:
        """Return the outputs of the distances, bin by bin, and the logits of the classes."""
        distances, logits = y.split((DISTANCES * self.bins, y.shape[-1] - DISTANCES * self.bins), dim=-1)
        return distances.unflatten(-1, (DISTANCES, self.bins)), logits

    def forward(self, features: list[Tensor]) -> list[Float[Tensor, "B 1 _ _ F"]]:
        """Return the raw outputs of each level, (B, 1, H, W, F), from the feature maps (B, C, H, W)."""
        branches = zip(self.boxes, self.scores, features, strict=True)
        return [split_anchors(torch.cat((boxes(x), scores(x)), dim=1), 1) for boxes, scores, x in branches]

    def decode(self, raw: list[Float[Tensor, "B 1 _ _ F"]]) -> tuple[Float[Tensor, "B P 4"], Float[Tensor, "B P K"]]:
        """Return boxes_cxcywh in pixels and scores in 0..1, in float32 for any input dtype."""
        boxes, scores = [], []
        for level, stride in zip(raw, self.strides, strict=True):
            outputs, logits = self.split_outputs(level.float())
            low, high = self.mean_distances(outputs).chunk(2, dim=-1)
            boxes.append(torch.cat((cell_coordinates(level) + 0.5 + (high - low) / 2, low + high), dim=-1) * stride)
            scores.append(logits.sigmoid())
        return concatenate_levels(boxes), concatenate_levels(scores)

    def mean_distances(self, outputs: Float[Tensor, "*_ 4 R"]) -> Float[Tensor, "*_ 4"]:
        """Return the distances from the centre of the cell in cells, from their outputs: 0 or more, with bins at most R - 1."""
        if self.bins == 1:
            return F.softplus(outputs[..., 0])
        cells = torch.arange(self.bins, device=outputs.device, dtype=outputs.dtype)
        return outputs.softmax(dim=-1) @ cells

"""Detection head, the task of every network: boxes, objectness and classes per cell and anchor.

Legend: B images, C channels, H W cells of a level, L levels, A anchors per cell, K classes, F = 5 + K numbers per anchor,
P predictions.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from yolor_ray.config import ImplicitConfig, NetworkConfig
from yolor_ray.model.heads.detection_head import DetectionHead
from yolor_ray.model.heads.prediction_level import PredictionLevel, cell_coordinates, concatenate_levels, neck_channels, predict_levels

OBJECTS_PER_IMAGE_PRIOR = 8
"""Expected objects in a 640 px image before training."""
BOX_OUTPUTS = {"centre": (0, 1), "size": (2, 3)}
"""Positions of centre and size in the outputs of an anchor: x, y, w, h, objectness, classes."""


class DetectHead(DetectionHead):
    """One prediction level per feature map of the neck, and the anchors (L, A, 2) in pixels."""

    def __init__(self, config: NetworkConfig, classes: int, anchors: Float[Tensor, "L A 2"] | None) -> None:
        super().__init__()
        if anchors is None or anchors.shape != (config.levels, config.anchors_per_level, 2):
            found = "none" if anchors is None else f"shape {tuple(anchors.shape)}"
            raise ValueError(f"anchors: found {found}, expected {(config.levels, config.anchors_per_level, 2)}")
        self.classes = classes
        self.strides = config.strides
        self._anchors = count = config.anchors_per_level
        levels = [PredictionLevel(c, 2 * c, count * (5 + classes), config, anchors=count) for c in neck_channels(config)]
        self.levels = nn.ModuleList(levels)
        self.register_buffer("anchors", anchors.float())
        for level, stride in zip(levels, self.strides, strict=True):
            self._add_bias_prior(level.predict, stride)

    @property
    def branches(self) -> tuple[nn.ModuleList, ...]:
        """Prediction levels of the only branch."""
        return (self.levels,)

    def add_implicit(self, implicit: ImplicitConfig) -> None:
        """Add fresh implicit knowledge to every level; `refine_what` "size" refines widths and heights alone (PR*)."""
        outputs = {
            what: [anchor * (5 + self.classes) + output for anchor in range(self._anchors) for output in of_anchor]
            for what, of_anchor in BOX_OUTPUTS.items()
        }
        for level in self.levels:
            level.add_implicit(implicit, outputs.get(implicit.refine_what), outputs["centre"])  # type: ignore[operator]

    @torch.no_grad()
    def _add_bias_prior(self, predict: nn.Conv2d, stride: int) -> None:
        """Shift the biases to rare objects and equal class probabilities; the first steps then do not go to the background."""
        assert predict.bias is not None
        bias = predict.bias.view(self._anchors, -1)
        bias[:, 4] += math.log(OBJECTS_PER_IMAGE_PRIOR / (640 / stride) ** 2)
        if self.classes > 1:
            bias[:, 5:] += math.log(0.6 / (self.classes - 0.99))

    def forward(self, features: list[Tensor]) -> list[Float[Tensor, "B A _ _ F"]]:
        """Return the raw outputs of each level, (B, A, H, W, F), from the feature maps (B, C, H, W)."""
        return predict_levels(self.levels, features, self._anchors)

    def decode(self, raw: list[Float[Tensor, "B A _ _ F"]]) -> tuple[Float[Tensor, "B P 4"], Float[Tensor, "B P K"]]:
        """Return boxes_cxcywh in pixels and scores in 0..1, in float32 for any input dtype.

        Centres lie from -0.5 to 1.5 cells from the cell's corner, sizes from 0 to 4 anchor sides. A score is objectness times
        class probability; with a single class the score is the objectness.
        """
        boxes, scores = [], []
        for level, stride, anchors in zip(raw, self.strides, self.anchors, strict=True):
            y = level.float().sigmoid()
            centre = (2 * y[..., :2] - 0.5 + cell_coordinates(y)) * stride
            size = (2 * y[..., 2:4]) ** 2 * anchors.view(1, -1, 1, 1, 2)
            boxes.append(torch.cat((centre, size), dim=-1))
            scores.append(y[..., 4:5] * y[..., 5:] if self.classes > 1 else y[..., 4:5])
        return concatenate_levels(boxes), concatenate_levels(scores)

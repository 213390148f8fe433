"""Predict boxes, objectness and classes per cell and anchor: the task that all networks have.

Legend: B images, H W cells of a level, A anchors per cell, K classes, F = 5 + K numbers per anchor, L levels, P predictions.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from yolor_ray.config import ImplicitConfig, NetworkConfig
from yolor_ray.model.heads.prediction_level import PredictionLevel, cells_of, channels_of, over_levels, predict_levels

OBJECTS_PER_IMAGE_PRIOR = 8
"""Objects that a 640 px image is expected to hold before anything is learned."""
SIZE_OUTPUTS = (2, 3)
"""Where width and height stand among an anchor's outputs x, y, w, h, objectness, classes."""


class DetectHead(nn.Module):
    """Hold a prediction level for each map of the neck, and the anchors in pixels."""

    anchors: Tensor

    def __init__(self, config: NetworkConfig, classes: int, anchors: Float[Tensor, "L A 2"]) -> None:
        super().__init__()
        if anchors.shape != (config.levels, config.anchors_per_level, 2):
            raise ValueError(f"anchors: found shape {tuple(anchors.shape)}, expected {(config.levels, config.anchors_per_level, 2)}")
        self.classes = classes
        self.strides = config.strides
        self._anchors = count = config.anchors_per_level
        levels = [PredictionLevel(c, 2 * c, count * (5 + classes), config, anchors=count) for c in channels_of(config)]
        self.levels = nn.ModuleList(levels)
        self.register_buffer("anchors", anchors.float())
        for level, stride in zip(levels, self.strides, strict=True):
            self._set_prior(level.predict, stride)

    def add_implicit(self, implicit: ImplicitConfig) -> None:
        """Put fresh implicit knowledge in its places, level by level."""
        sizes = [anchor * (5 + self.classes) + side for anchor in range(self._anchors) for side in SIZE_OUTPUTS]
        for level in self.levels:
            level.add_implicit(implicit, sizes if implicit.refine_what == "size" else None)  # type: ignore[operator]

    @torch.no_grad()
    def _set_prior(self, predict: nn.Conv2d, stride: int) -> None:
        """Start from rare objects and even classes, so that the first steps are not spent on the background."""
        assert predict.bias is not None
        bias = predict.bias.view(self._anchors, -1)
        bias[:, 4] += math.log(OBJECTS_PER_IMAGE_PRIOR / (640 / stride) ** 2)
        if self.classes > 1:
            bias[:, 5:] += math.log(0.6 / (self.classes - 0.99))

    def forward(self, features: list[Tensor]) -> list[Float[Tensor, "B A _ _ F"]]:
        """Return raw predictions per level."""
        return predict_levels(self.levels, features, self._anchors)

    def decode(self, raw: list[Float[Tensor, "B A _ _ F"]]) -> tuple[Float[Tensor, "B P 4"], Float[Tensor, "B P K"]]:
        """Turn raw predictions into boxes_cxcywh in pixels and scores 0..1, in float32 whatever the input.

        Centres reach half a cell beyond their own, sizes up to four anchors. A score is objectness times class
        probability; with a single class, objectness alone.
        """
        boxes, scores = [], []
        for level, stride, anchors in zip(raw, self.strides, self.anchors, strict=True):
            y = level.float().sigmoid()
            centre = (2 * y[..., :2] - 0.5 + cells_of(y)) * stride
            size = (2 * y[..., 2:4]) ** 2 * anchors.view(1, -1, 1, 1, 2)
            boxes.append(torch.cat((centre, size), dim=-1))
            scores.append(y[..., 4:5] * y[..., 5:] if self.classes > 1 else y[..., 4:5])
        return over_levels(boxes), over_levels(scores)

"""Segmentation head: instance masks as mixtures of prototypes per image, with mixing coefficients per anchor.

After YOLACT (arXiv 1904.02689). Legend: B images, H W sides of the network input in pixels, A anchors per cell, P predictions,
C prototypes.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from yolor_ray.config import NetworkConfig
from yolor_ray.model.heads.detection_head import DetectionHead
from yolor_ray.model.heads.prediction_level import (
    OutputCounts,
    PredictionLevel,
    concatenate_levels,
    make_anchor_levels,
    neck_channels,
    predict_levels,
)
from yolor_ray.model.layers import Conv, conv_settings

PROTOTYPES = 32
"""Prototype masks per image, C; their sides are a quarter of the input's sides."""


class SegmentHead(nn.Module):
    """Coefficients per anchor on every level, and prototypes from the finest level."""

    def __init__(self, config: NetworkConfig, _: OutputCounts) -> None:
        super().__init__()
        self._anchors = config.predictions_per_cell
        self.levels = make_anchor_levels(config, PROTOTYPES)
        finest = neck_channels(config)[0]
        width = max(finest, PROTOTYPES)
        self.coarse = Conv(finest, width, 3, settings=conv_settings(config))
        self.fine = PredictionLevel(width, width, PROTOTYPES, config)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Return the coefficients of each level, (B, A, rows, columns, C), and last the prototypes, (B, C, H/4, W/4)."""
        enlarged = F.interpolate(self.coarse(features[0]), scale_factor=2.0, mode="nearest")
        return [*predict_levels(self.levels, features, self._anchors), self.fine(enlarged)]

    def decode(self, raw: list[Tensor], _: DetectionHead) -> dict[str, Tensor]:
        """Return `coefficients` (B, P, C) and `prototypes` (B, C, H/4, W/4); the product over C gives the logits of a mask."""
        *levels, prototypes = (output.float() for output in raw)
        return {"coefficients": concatenate_levels(levels), "prototypes": prototypes}

"""Segment each object: masks are mixtures of prototypes, which the image as a whole has, by coefficients, which each anchor has.

After YOLACT (arXiv 1904.02689). Legend: B images, H W sides of the input in pixels, A anchors per cell, P predictions, C prototypes.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from yolor_ray.config import NetworkConfig
from yolor_ray.model.heads.detect import DetectHead
from yolor_ray.model.heads.prediction_level import OutputCounts, PredictionLevel, anchor_levels, channels_of, over_levels, predict_levels
from yolor_ray.model.layers import Conv, conv_settings

PROTOTYPES = 32
"""Prototype masks of an image, each a quarter of the input's sides."""


class SegmentHead(nn.Module):
    """Predict coefficients per anchor and, from the finest level, the prototypes."""

    def __init__(self, config: NetworkConfig, _: OutputCounts) -> None:
        super().__init__()
        self._anchors = config.anchors_per_level
        self.levels = anchor_levels(config, PROTOTYPES)
        finest = channels_of(config)[0]
        width = max(finest, PROTOTYPES)
        self.coarse = Conv(finest, width, 3, style=conv_settings(config))
        self.fine = PredictionLevel(width, width, PROTOTYPES, config)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Return coefficients per level, (B, A, rows, columns, C), and last the prototypes, (B, C, H/4, W/4)."""
        enlarged = F.interpolate(self.coarse(features[0]), scale_factor=2.0, mode="nearest")
        return [*predict_levels(self.levels, features, self._anchors), self.fine(enlarged)]

    def decode(self, raw: list[Tensor], _: DetectHead) -> dict[str, Tensor]:
        """Return `coefficients` (B, P, C) and `prototypes` (B, C, H/4, W/4); a mask's logits are their product."""
        *levels, prototypes = (part.float() for part in raw)
        return {"coefficients": over_levels(levels), "prototypes": prototypes}

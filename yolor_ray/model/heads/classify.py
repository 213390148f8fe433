"""Classify whole images with several labels each: YOLOR's joint detection and classification (JDC, paper section 5.3).

Legend: B images, M image classes.
"""

from jaxtyping import Float
from torch import Tensor, nn

from yolor_ray.config import NetworkConfig
from yolor_ray.model.heads.detect import DetectHead
from yolor_ray.model.heads.prediction_level import MIN_WIDTH, OutputCounts, PredictionLevel, channels_of


class ClassifyHead(nn.Module):
    """Pool each level and add up what the levels say."""

    def __init__(self, config: NetworkConfig, counts: OutputCounts) -> None:
        super().__init__()
        levels = (PredictionLevel(c, max(c, MIN_WIDTH), counts.image_classes, config, pooled=True) for c in channels_of(config))
        self.levels = nn.ModuleList(levels)

    def forward(self, features: list[Tensor]) -> list[Float[Tensor, "B M"]]:
        """Return the logits, as the only one of a list."""
        logits = [level(x).flatten(1) for level, x in zip(self.levels, features, strict=True)]
        return [sum(logits[1:], start=logits[0])]

    def decode(self, raw: list[Tensor], _: DetectHead) -> dict[str, Tensor]:
        """Return `image_labels`, (B, M) probabilities."""
        return {"image_labels": raw[0].float().sigmoid()}

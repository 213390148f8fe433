"""Classification head: several labels per image, as in YOLOR's joint detection and classification (JDC, paper table 3).

Legend: B images, C channels, H W cells of a level, M image classes.
"""

from jaxtyping import Float
from torch import Tensor, nn

from yolor_ray.config import NetworkConfig
from yolor_ray.model.heads.detection_head import DetectionHead
from yolor_ray.model.heads.prediction_level import MIN_WIDTH, OutputCounts, PredictionLevel, neck_channels


class ClassifyHead(nn.Module):
    """Image labels: the sum of the logits of all levels, each pooled over its map."""

    def __init__(self, config: NetworkConfig, counts: OutputCounts) -> None:
        super().__init__()
        levels = (PredictionLevel(c, max(c, MIN_WIDTH), counts.image_classes, config, pooled=True) for c in neck_channels(config))
        self.levels = nn.ModuleList(levels)

    def forward(self, features: list[Tensor]) -> list[Float[Tensor, "B M"]]:
        """Return a list with one tensor, the logits (B, M), from the feature maps (B, C, H, W) of all levels."""
        logits = [level(x).flatten(1) for level, x in zip(self.levels, features, strict=True)]
        return [sum(logits[1:], start=logits[0])]

    def decode(self, raw: list[Tensor], _: DetectionHead) -> dict[str, Tensor]:
        """Return `image_labels`, (B, M) probabilities."""
        return {"image_labels": raw[0].float().sigmoid()}

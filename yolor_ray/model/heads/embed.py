"""Embed each object so that one individual is close to itself and far from others: joint detection and embedding (JDE, paper section 5.3).

Legend: B images, A anchors per cell, P predictions, E numbers of an embedding, I identities of the training set.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from yolor_ray.config import NetworkConfig
from yolor_ray.model.heads.detect import DetectHead
from yolor_ray.model.heads.prediction_level import OutputCounts, anchor_levels, over_levels, predict_levels

EMBEDDING = 64
"""Numbers of an embedding."""


class EmbedHead(nn.Module):
    """Predict an embedding per anchor; `proxies` hold a direction for each identity while training, and fusing drops them."""

    def __init__(self, config: NetworkConfig, counts: OutputCounts) -> None:
        super().__init__()
        self._anchors = config.anchors_per_level
        # What all embeddings share says nothing, and would leave hardly any angle between them.
        self.levels = anchor_levels(config, EMBEDDING, normed=True)
        self.proxies = nn.Parameter(torch.randn(counts.identities, EMBEDDING) / EMBEDDING**0.5) if counts.identities else None

    def forward(self, features: list[Tensor]) -> list[Float[Tensor, "B A _ _ E"]]:
        """Return embeddings of any length per level."""
        return predict_levels(self.levels, features, self._anchors)

    def decode(self, raw: list[Tensor], _: DetectHead) -> dict[str, Tensor]:
        """Return `embeddings`, (B, P, E) of length 1."""
        return {"embeddings": F.normalize(over_levels([level.float() for level in raw]), dim=-1)}

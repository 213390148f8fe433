"""Embedding head: embeddings of one individual are close to each other and far from those of other individuals.

Joint detection and embedding (JDE, paper table 3).
Legend: B images, C channels, H W cells of a level, A anchors per cell, P predictions, E numbers of an embedding, I identities of the
training set.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from yolor_ray.config import NetworkConfig
from yolor_ray.model.heads.detection_head import DetectionHead
from yolor_ray.model.heads.prediction_level import OutputCounts, concatenate_levels, make_anchor_levels, predict_levels

EMBEDDING = 64
"""Numbers of an embedding, E."""


class EmbedHead(nn.Module):
    """Embedding per anchor.

    `proxies` (I, E) holds one direction per identity during training, and the buffer `datasets` (I,) the index of its dataset; fusing drops
    the proxies.
    """

    datasets: Tensor

    def __init__(self, config: NetworkConfig, counts: OutputCounts) -> None:
        super().__init__()
        self._anchors = config.predictions_per_cell
        # A component common to all embeddings carries no information and leaves hardly any angle between embeddings.
        self.levels = make_anchor_levels(config, EMBEDDING, centred=True)
        datasets = [dataset for dataset, individuals in enumerate(counts.identities) for _ in range(individuals)]
        self.register_buffer("datasets", torch.tensor(datasets, dtype=torch.long), persistent=False)
        self.proxies = nn.Parameter(torch.randn(len(datasets), EMBEDDING) / EMBEDDING**0.5) if len(datasets) else None

    def forward(self, features: list[Tensor]) -> list[Float[Tensor, "B A _ _ E"]]:
        """Return embeddings of arbitrary length, (B, A, H, W, E) per level, from the feature maps (B, C, H, W)."""
        return predict_levels(self.levels, features, self._anchors)

    def decode(self, raw: list[Tensor], _: DetectionHead) -> dict[str, Tensor]:
        """Return `embeddings`, (B, P, E), each of length 1."""
        return {"embeddings": F.normalize(concatenate_levels([level.float() for level in raw]), dim=-1)}

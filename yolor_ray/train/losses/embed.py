"""Loss of the task embed: each embedding points towards the proxy of its identity and away from all others.

Normalised softmax with a margin (CosFace, arXiv 1801.09414) over the identities of the training set, as joint detection and embedding has
it without a margin (JDE, arXiv 1909.12605; YOLOR table 3).
In a union of datasets, the softmax has the identities of the image's dataset alone: those of others are told apart by the kind of image.
Legend: B images, A anchors per cell, H W cells of a level, M matches, E numbers of an embedding, I identities.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from yolor_ray.model.heads.embed import EmbedHead
from yolor_ray.model.network import Yolor
from yolor_ray.train.losses.assign import Matches, Targets

EXCLUDED = -10.0
"""Cosine of an identity of another dataset; its share in the softmax is 0 in float32."""
COSINE_SCALE = 16.0
"""Factor of the cosines before the softmax."""
MARGIN = 0.2
"""Cosine by which an embedding has to be closer to its own proxy than to any other (equation 4 of CosFace)."""


def embed_loss(raw: list[Tensor], targets: Targets, matches: Matches, network: Yolor) -> Tensor:
    """Return the mean cross-entropy of the matches with a known identity, or 0 if there is none; all images are of one dataset.

    `raw` holds the embeddings, (B, A, H, W, E) per level. The proxies of the head are (I, E).
    """
    head = network.tasks["embed"]
    assert isinstance(head, EmbedHead) and head.proxies is not None and targets.identities is not None
    embeddings = F.normalize(matches.gather_levels(raw), dim=-1)
    identities = torch.where(matches.valid, targets.identities[matches.objects], -1)
    cosines = embeddings @ F.normalize(head.proxies.float(), dim=-1).T
    cosines = cosines - MARGIN * (identities[:, None] == torch.arange(len(head.proxies), device=identities.device))
    if targets.members is not None:
        cosines = cosines.masked_fill(head.datasets != targets.members[0], EXCLUDED)
    total = F.cross_entropy(COSINE_SCALE * cosines, identities, ignore_index=-1, reduction="sum")
    return total / (identities >= 0).sum().clamp(min=1)

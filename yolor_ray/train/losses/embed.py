"""Compute the loss of embeddings: each has to point to its own identity's proxy, and away from all others.

Normalised softmax (arXiv 1704.06369) over the training set's identities, as joint detection and embedding classifies them (JDE,
arXiv 1909.12605). Legend: M matches with a known identity, E numbers of an embedding, I identities.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from yolor_ray.model.heads.embed import EmbedHead
from yolor_ray.model.network import Yolor
from yolor_ray.train.losses.assign import Matches, Targets, at_matches

SHARPNESS = 16.0
"""What cosines are multiplied by before the softmax."""


def embed_loss(raw: list[Tensor], targets: Targets, matches: list[Matches], network: Yolor) -> Tensor:
    """Return the mean cross-entropy over matches of known identity, 0 where there is none."""
    head = network.tasks["embed"]
    assert isinstance(head, EmbedHead) and head.proxies is not None and targets.identities is not None
    embeddings = F.normalize(at_matches(raw, matches), dim=-1)
    wanted = targets.identities[torch.cat([level.objects for level in matches])]
    cosines = embeddings @ F.normalize(head.proxies.float(), dim=-1).T
    each = F.cross_entropy(SHARPNESS * cosines, wanted, ignore_index=-1, reduction="sum")
    return each / (wanted >= 0).sum().clamp(min=1)

"""Compute the loss of image labels.

Legend: B images, M image labels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from yolor_ray.model.network import Yolor
from yolor_ray.train.losses.assign import Matches, Targets


def classify_loss(raw: list[Tensor], targets: Targets, _: list[Matches], __: Yolor) -> Tensor:
    """Return the mean BCE over all labels that are known, 0 where none is."""
    logits = raw[0].float()
    assert targets.image_labels is not None
    known = ~targets.image_labels.isnan()
    wanted = torch.where(known, targets.image_labels, 0.0)
    each = F.binary_cross_entropy_with_logits(logits, wanted, weight=known.to(logits.dtype), reduction="sum")
    return each / known.sum().clamp(min=1)

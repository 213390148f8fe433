"""Loss of the task classify: labels of whole images.

Legend: B images, M image labels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from yolor_ray.model.network import Yolor
from yolor_ray.train.losses.assign import Matches, Targets


def classify_loss(raw: list[Tensor], targets: Targets, _: Matches, __: Yolor) -> Tensor:
    """Return the mean binary cross-entropy of all known labels, or 0 if no label is known.

    `raw` holds one tensor, the logits (B, M). `targets.image_labels` is (B, M).
    """
    logits = raw[0].float()
    assert targets.image_labels is not None
    annotated = ~targets.image_labels.isnan()
    expected = torch.where(annotated, targets.image_labels, 0.0)
    total = F.binary_cross_entropy_with_logits(logits, expected, weight=annotated.to(logits.dtype), reduction="sum")
    return total / annotated.sum().clamp(min=1)

"""Scale gradients by their norm, so that an update depends on neither the batch nor the gains of the loss."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from yolor_ray.config import OptimConfig

DECAY = 0.98
"""Decay of the mean norm per update: the mean covers about 50 updates."""


@dataclass
class GradientClipper:
    """Scale each gradient to norm 1 for AdamW; for SGD, limit its norm relative to earlier ones.

    AdamW divides by a mean of squared gradients. Without the scaling, a few large gradients would shrink the updates after them. SGD keeps
    the size of gradients, and the first gradient sets the mean norm.
    """

    optim: OptimConfig
    mean_norm: Float[Tensor, ""]
    """Mean norm of earlier gradients, on their device; 0 before the first update."""

    def clip(self, parameters: Iterable[nn.Parameter]) -> Float[Tensor, ""]:
        """Scale the gradients in place and return their norm before scaling; a norm of 0 or without a finite value changes nothing."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        is_usable = (norm > 0) & (norm < math.inf)
        ratio = norm / self._limit(norm, is_usable) if self.optim.optimizer == "sgd" else norm
        torch._foreach_div_(gradients, torch.where(is_usable, ratio, 1.0))
        return norm

    def _limit(self, norm: Float[Tensor, ""], is_usable: Bool[Tensor, ""]) -> Float[Tensor, ""]:
        """Return the norm, limited relative to the mean norm, and move the mean if the norm is usable."""
        mean = torch.where(self.mean_norm > 0, self.mean_norm, norm)
        # The first gradient has no limit.
        limit = torch.where(self.mean_norm > 0, self.optim.clip_ratio * mean, norm) if self.optim.clip_ratio else norm
        limited = torch.minimum(norm, limit)
        self.mean_norm = torch.where(is_usable, DECAY * mean + (1 - DECAY) * limited, self.mean_norm)
        return limited

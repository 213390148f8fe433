"""Scale gradients by their norm, so that an update depends on neither the batch nor the gains of the loss."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

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
    mean_norm: float = 0.0
    """Mean norm of earlier gradients; 0 before the first update."""

    def clip(self, parameters: Iterable[nn.Parameter]) -> float:
        """Scale the gradients in place and return their norm before scaling; a norm that is not finite changes nothing."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        # One number is read from the device per update.
        norm = nn.utils.get_total_norm(gradients).item()
        if not 0 < norm < float("inf"):
            return norm
        target = 1.0 if self.optim.optimizer != "sgd" else self._limit(norm)
        if target != norm:
            torch._foreach_mul_(gradients, target / norm)
        return norm

    def _limit(self, norm: float) -> float:
        """Return the norm, limited relative to the mean norm, and move the mean."""
        can_clip = self.optim.clip_ratio and self.mean_norm
        limited = min(norm, self.optim.clip_ratio * self.mean_norm) if can_clip else norm
        self.mean_norm = DECAY * (self.mean_norm or norm) + (1 - DECAY) * limited
        return limited

"""Clip gradients relative to their recent norms, so that the limit depends on neither the batch nor the gains of the loss."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

DECAY = 0.98
"""Decay of the mean norm per update: the mean covers about 50 updates."""


@dataclass
class GradientClipper:
    """Limit each gradient's norm to a multiple of the mean norm of earlier updates; the first gradient sets the mean."""

    ratio: float
    """Largest norm relative to the mean norm; 0 clips nothing."""
    mean_norm: float = 0.0

    def clip(self, parameters: Iterable[nn.Parameter]) -> float:
        """Clip the gradients in place and return their norm before clipping; a norm that is not finite changes nothing."""
        parameters = [parameter for parameter in parameters if parameter.grad is not None]
        total = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        # One number is read from the device per update.
        norm = total.item()
        if not torch.isfinite(total):
            return norm
        if self.ratio and self.mean_norm:
            limit = self.ratio * self.mean_norm
            nn.utils.clip_grads_with_norm_(parameters, limit, total)
        else:
            limit = norm
        self.mean_norm = DECAY * (self.mean_norm or norm) + (1 - DECAY) * min(norm, limit)
        return norm

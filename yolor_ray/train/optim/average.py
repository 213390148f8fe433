"""Exponential moving average (EMA) of the weights, which is validated and published instead of the weights."""

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import nn

EMA_RAMP_UPDATES = 2000
Averaged = TypeVar("Averaged", bound=nn.Module)


class WeightAverage(Generic[Averaged]):
    """Exponential moving average (EMA) of all floating-point weights and statistics; integers are copied."""

    def __init__(self, network: Averaged, decay: float, window: float) -> None:
        """Copy the network as the initial average.

        Args:
            network: network to average; its parameters and statistics must stay the same tensors, which `update` reads.
            decay: decay per update, capped so that the average covers at most `window` updates.
            window: updates, 1 or more.
        """
        self.decay = min(decay, 1 - 1 / (1 + window))
        self.ramp = min(EMA_RAMP_UPDATES, window)
        self.updates = 0
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        # Listed once: to walk through the modules of both networks takes longer than the update itself.
        pairs = list(zip(self.network.state_dict().values(), network.state_dict().values(), strict=True))
        self._floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._integers = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the network's weights; the first updates have a lower decay.

        An update that left the weights as they were, because its gradient was not finite, counts too.
        """
        self.updates += 1
        decay = self.decay * (1 - math.exp(-self.updates / self.ramp))
        averages, values = zip(*self._floats, strict=True)
        torch._foreach_lerp_(averages, values, 1 - decay)
        if self._integers:
            averages, values = zip(*self._integers, strict=True)
            torch._foreach_copy_(averages, values)

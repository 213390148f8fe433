"""Optimizer: parameter groups, the schedule of learning rate and momentum, and the average of the weights.

Every scheduled value is a pure function of the step, so a resumed run follows the same path.
"""

import copy
import math
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import nn

from yolor_ray.config import OptimConfig
from yolor_ray.model.implicit import Implicit

WARMUP_MIN_STEPS = 1000
WARMUP_MAX_SHARE = 0.1
WARMUP_BIAS_LR = 0.1
WARMUP_MOMENTUM = 0.8
EMA_RAMP_UPDATES = 2000
EMA_WINDOW_SHARE = 0.1
"""Maximum window of the average, as a share of the run's updates."""

Averaged = TypeVar("Averaged", bound=nn.Module)

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict]:
    """Return three groups: norm scales and implicit vectors, convolution weights (the only ones with decay), biases."""
    scales, weights, biases = [], [], []
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias":
                biases.append(parameter)
            elif isinstance(module, (*NORMS, Implicit)):
                scales.append(parameter)
            else:
                weights.append(parameter)
    return [
        {"params": scales, "weight_decay": 0.0},
        {"params": weights, "weight_decay": weight_decay},
        {"params": biases, "weight_decay": 0.0, "bias": True},
    ]


def make_optimizer(network: nn.Module, config: OptimConfig) -> torch.optim.SGD:
    """Return SGD with Nesterov momentum over the three parameter groups."""
    groups = parameter_groups(network, config.weight_decay)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=True)


@dataclass(frozen=True)
class Schedule:
    """Learning rate, momentum and accumulation at every step; one step is one batch."""

    config: OptimConfig
    steps_per_epoch: int

    @property
    def total_steps(self) -> int:
        """Steps of the run."""
        return self.steps_per_epoch * self.config.epochs

    @property
    def warmup_steps(self) -> int:
        """Steps of warm-up: the configured epochs, at least 1000 steps, at most a tenth of the run; 0 for 0 epochs."""
        minimum = WARMUP_MIN_STEPS if self.config.warmup_epochs > 0 else 0
        steps = max(round(self.config.warmup_epochs * self.steps_per_epoch), minimum)
        return min(steps, int(self.total_steps * WARMUP_MAX_SHARE))

    def batches_per_update(self, step: int) -> int:
        """Return the batches per optimizer update: 1 at step 0, growing to nominal_batch / batch during warm-up."""
        full = max(round(self.config.nominal_batch / self.config.batch), 1)
        return full if step >= self.warmup_steps else max(1, round(1 + (full - 1) * step / self.warmup_steps))

    def lr_factor(self, step: int) -> float:
        """Return the factor of the learning rate after warm-up: a cosine from 1 to `final_lr_ratio` over the run."""
        progress = step / max(self.total_steps, 1)
        return (1 + math.cos(math.pi * progress)) / 2 * (1 - self.config.final_lr_ratio) + self.config.final_lr_ratio

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set the learning rate and momentum of every group for a step."""
        warmup_progress = min(step / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        peak = self.config.lr * self.lr_factor(step)
        for group in optimizer.param_groups:
            start = max(WARMUP_BIAS_LR, peak) if group.get("bias") else 0.0
            group["lr"] = start + (peak - start) * warmup_progress
            group["momentum"] = WARMUP_MOMENTUM + (self.config.momentum - WARMUP_MOMENTUM) * warmup_progress


class WeightAverage(Generic[Averaged]):
    """Exponential moving average (EMA) of all floating-point weights and statistics; integers are copied."""

    def __init__(self, network: Averaged, decay: float, total_updates: int) -> None:
        """Copy the network as the initial average.

        Args:
            network: network to average.
            decay: decay per update, capped so that the window is at most `EMA_WINDOW_SHARE` of the run.
            total_updates: optimizer updates of the run.
        """
        window = max(total_updates * EMA_WINDOW_SHARE, 1.0)
        self.decay = min(decay, 1 - 1 / (1 + window))
        self.ramp = min(EMA_RAMP_UPDATES, window)
        self.updates = 0
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the average towards the network's weights; the first updates have a lower decay."""
        self.updates += 1
        decay = self.decay * (1 - math.exp(-self.updates / self.ramp))
        averages, values = [], []
        for average, value in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            if average.is_floating_point():
                averages.append(average)
                values.append(value.detach())
            else:
                average.copy_(value)
        torch._foreach_lerp_(averages, values, 1 - decay)

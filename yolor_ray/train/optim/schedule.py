"""Schedule of learning rate, momentum and accumulation: pure functions of the step, so a resumed run follows the same path."""

import math
from dataclasses import dataclass

import torch

from yolor_ray.config import OptimConfig

WARMUP_MIN_STEPS = 1000
WARMUP_MAX_SHARE = 0.1
WARMUP_BIAS_LR = 0.1
WARMUP_MOMENTUM = 0.8


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
    def updates(self) -> int:
        """Updates of the run, as if accumulation did not grow during warm-up."""
        return self.total_steps // self.batches_per_update(self.total_steps)

    @property
    def warmup_steps(self) -> int:
        """Steps of warm-up: the configured epochs, at least 1000 steps, at most a tenth of an adaptive run; 0 for 0 epochs."""
        minimum = WARMUP_MIN_STEPS if self.config.warmup_epochs > 0 else 0
        steps = max(round(self.config.warmup_epochs * self.steps_per_epoch), minimum)
        return min(steps, int(self.total_steps * (WARMUP_MAX_SHARE if self.config.recipe == "adaptive" else 1)))

    def batches_per_update(self, step: int) -> int:
        """Return the batches per optimizer update: 1 at step 0, growing to nominal_batch / batch during warm-up."""
        full = max(round(self.config.nominal_batch / self.config.batch), 1)
        return full if step >= self.warmup_steps else max(1, round(1 + (full - 1) * step / self.warmup_steps))

    def lr_factor(self, step: int) -> float:
        """Return the factor of the learning rate after warm-up: a cosine from 1 to `final_lr_ratio` over the run."""
        progress = step / max(self.total_steps, 1)
        return (1 + math.cos(math.pi * progress)) / 2 * (1 - self.config.final_lr_ratio) + self.config.final_lr_ratio

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set the learning rate and momentum of every group for a step; only SGD's biases start at a high rate."""
        warmup_progress = min(step / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        peak = self.config.lr * self.lr_factor(step)
        for group in optimizer.param_groups:
            start = max(WARMUP_BIAS_LR, peak) if group.get("bias") and self.config.optimizer == "sgd" else 0.0
            group["lr"] = start + (peak - start) * warmup_progress
            momentum = WARMUP_MOMENTUM + (self.config.momentum - WARMUP_MOMENTUM) * warmup_progress
            if "betas" in group:
                group["betas"] = (momentum, group["betas"][1])
            else:
                group["momentum"] = momentum

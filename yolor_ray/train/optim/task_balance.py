"""Balance the tasks: bring each task's gradient on the shared features to the size of detection's gradient.

All tasks learn the backbone and the neck, where a task with a larger gradient decides alone. The size of a task's gradient is its norm at
the neck's feature maps, the representation that the tasks share (multi-task learning as multi-objective optimization, arXiv 1810.04650,
section 3.3). The weights follow from running means of the norms; GradNorm (arXiv 1711.02257) learns them instead.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

MEASURED_STEPS = 8
"""Steps from one measurement to the next, because a measurement costs one more backward pass of the heads."""
DECAY = 0.9
"""Decay of the mean norms per measurement: the means cover about 10 measurements."""


class TaskBalance:
    """Running means of the tasks' gradient norms, and the weights of the tasks' losses that follow from them."""

    def __init__(self, neck: nn.Module, gains: Mapping[str, float]) -> None:
        """Keep the feature maps of every forward pass of the neck.

        Args:
            neck: neck of the trained network.
            gains: size of each task's gradient relative to detection's, by the name of the task.
        """
        self.norms: dict[str, float] = {}
        """Mean norm of each task's gradient and of detection's, by name, of those measured so far."""
        self._gains = gains
        self._features: list[Tensor] = []
        neck.register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: Any, features: list[Tensor]) -> None:
        self._features = features

    def balance(self, terms: Mapping[str, Tensor], step: int) -> Tensor:
        """Return the sum of the loss terms, that of each task weighted by gain · detection's mean norm / the task's mean norm.

        The norms are measured every `MEASURED_STEPS` steps; every worker must call the method in the same step. A task without an
        annotation on any worker keeps its mean norm.

        Args:
            terms: loss terms of the last forward pass: one of each task under its name, all others of detection.
            step: number of the batch in the run.
        """
        losses = {"detect": torch.stack([term for name, term in terms.items() if name not in self._gains]).sum()}
        losses |= {task: terms[task] for task in self._gains}
        if step % MEASURED_STEPS == 0:
            self._measure(losses)
        return torch.stack([loss * self.weight(task) for task, loss in losses.items()]).sum()

    def weight(self, task: str) -> float:
        """Return the weight of a task's loss: the gain alone as long as the task or detection had no gradient."""
        gain = self._gains.get(task, 1.0)
        known = task in self.norms and "detect" in self.norms
        return gain * self.norms["detect"] / self.norms[task] if known else gain

    def _measure(self, losses: Mapping[str, Tensor]) -> None:
        norms = torch.stack([self._norm(loss) for loss in losses.values()])
        if dist.is_initialized():
            dist.all_reduce(norms)
        for task, norm in zip(losses, norms.tolist(), strict=True):
            if 0 < norm < float("inf"):
                self.norms[task] = DECAY * self.norms.get(task, norm) + (1 - DECAY) * norm

    def _norm(self, loss: Tensor) -> Tensor:
        """Return the norm of the gradient of a loss at the feature maps of all levels, in float32."""
        gradients = torch.autograd.grad(loss, self._features, retain_graph=True, allow_unused=True)
        return nn.utils.get_total_norm([gradient.float() for gradient in gradients if gradient is not None])

"""Muon: orthogonalised momentum for convolution kernels, and AdamW for all other parameters (Jordan et al., 2024).

A kernel (O, I, k, k) is a matrix (O, I·k·k). Newton-Schulz iterations replace the singular values of its momentum by values near 1.
"""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration, with the steepest slope at 0."""
ITERATIONS = 5
RMS_OF_ADAMW = 0.2
"""Root mean square of an AdamW update; Muon's updates are scaled to it, so that both take the same learning rate (arXiv 2502.16982)."""
EPS = 1e-7


class Muon(torch.optim.AdamW):
    """AdamW whose groups with `orthogonal` set use Muon for their parameters, which must be kernels."""

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, lr=lr, betas=betas, fused=True)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have gradients."""
        kernels = [group for group in self.param_groups if group.get("orthogonal")]
        for group in kernels:
            self._update_kernels(group)
        # AdamW must not see the kernels: their gradients are set aside.
        gradients = {p: p.grad for group in kernels for p in group["params"]}
        for parameter in gradients:
            parameter.grad = None
        super().step()
        for parameter, gradient in gradients.items():
            parameter.grad = gradient

    def _update_kernels(self, group: dict[str, Any]) -> None:
        momentum = group["betas"][0]
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            buffer = state["momentum_buffer"]
            buffer.lerp_(parameter.grad, 1 - momentum)
            update = orthogonalise(torch.lerp(parameter.grad, buffer, momentum).flatten(1))
            scale = RMS_OF_ADAMW * max(update.shape) ** 0.5
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update.view_as(parameter).to(parameter.dtype), alpha=-group["lr"] * scale)


def orthogonalise(matrix: Float[Tensor, "O I"]) -> Float[Tensor, "O I"]:
    """Return a matrix with the same singular vectors and singular values near 1, in bfloat16."""
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16()
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    x = x / x.norm().clamp(min=EPS)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if is_tall else x

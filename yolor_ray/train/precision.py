"""Precision of training: the number format of the forward pass, and the scale of the loss where that format is float16.

Gradients of float16 below 6e-8 become 0. The loss is multiplied by a scale before the backward pass, and the gradients are divided by
the scale before clipping. The scale is halved after a gradient that is not finite, and doubled after 2000 finite ones in a row.
"""

import torch
from jaxtyping import Bool
from torch import Tensor


def compute_dtype(device: torch.device) -> torch.dtype:
    """Return the number format of the forward pass: bfloat16 where the device has units for it, else float16 on GPUs, float32 on CPUs."""
    if device.type == "cuda":
        # GPUs before compute capability 8.0 emulate bfloat16, slower than float32. They have units for float16.
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if torch.cpu.get_capabilities().get("avx512_bf16") else torch.float32


def autocast(device: torch.device) -> torch.autocast:
    """Return the autocast of the device's number format; for float32, a context without effect."""
    dtype = compute_dtype(device)
    has_effect = dtype is not torch.float32
    return torch.autocast(device.type, dtype if has_effect else torch.bfloat16, enabled=has_effect)


def make_scaler(device: torch.device) -> torch.amp.GradScaler:
    """Return the scaler of the loss; without effect unless the forward pass computes in float16."""
    return torch.amp.GradScaler(device.type, enabled=compute_dtype(device) is torch.float16)


def update_scale(scaler: torch.amp.GradScaler, device: torch.device) -> Bool[Tensor, ""]:
    """Update the scale after a gradient, and return True if the scale may be the cause of a gradient that was not finite.

    A scale that was 1 or less, or that stayed the same, is not the cause.
    """
    if not scaler.is_enabled():
        return torch.zeros((), dtype=torch.bool, device=device)
    one = torch.ones((), device=device)
    before = scaler.scale(one)
    scaler.update()
    return (before > 1) & (scaler.scale(one) < before)

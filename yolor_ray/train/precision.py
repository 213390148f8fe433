"""Precision of training: the number format of the forward pass, and the scale of the loss where that format is float16.

Gradients of float16 below 6e-8 become 0. The loss is multiplied by a scale before the backward pass, and the gradients are divided by
the scale before clipping. The scale is halved after a gradient that is not finite, and doubled after 2000 finite ones in a row.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from yolor_ray.model.network import Yolor

WeightGroup = list[tuple[nn.Module, str]]
"""Weights and biases of the convolutions of a part of the network: a layer and the name of its parameter."""


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


def weight_groups(network: Yolor) -> list[WeightGroup]:
    """Return the weights of each part; workers exchange the gradients of a part as soon as its backward pass is done."""
    parts = [network.backbone.stem, *network.backbone.stages, network.neck, network.head, *network.tasks.values()]
    layers = [[layer for layer in part.modules() if isinstance(layer, nn.Conv2d)] for part in parts]
    return [[(layer, name) for layer in group for name, _ in layer.named_parameters()] for group in layers if group]


@contextlib.contextmanager
def converted_weights(groups: Sequence[WeightGroup], device: torch.device) -> Iterator[None]:
    """Let convolutions compute with copies of their weights in the device's number format, and the weights get the gradients.

    The weights of a group are converted by one kernel, and so are their gradients. Autocast converts them one by one.
    """
    dtype = compute_dtype(device)
    if dtype is torch.float32:
        yield
        return
    try:
        for group in groups:
            copies = _Convert.apply(dtype, *(getattr(layer, name) for layer, name in group))
            for (layer, name), copy in zip(group, copies, strict=True):
                # An attribute hides the parameter of the same name, which stays registered.
                vars(layer)[name] = copy
        yield
    finally:
        for group in groups:
            for layer, name in group:
                vars(layer).pop(name, None)


class _Convert(torch.autograd.Function):
    """Copies of tensors in another number format, all by one kernel."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.dtype = tensors[0].dtype
        ctx.set_materialize_grads(False)
        return tuple(_converted(tensors, dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        converted = iter(_converted([gradient for gradient in gradients if gradient is not None], ctx.dtype))
        return None, *(None if gradient is None else next(converted) for gradient in gradients)


def _converted(tensors: list[Tensor] | tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(copies, tensors)
    return copies


def make_scaler(device: torch.device) -> torch.amp.GradScaler:
    """Return the scaler of the loss; without effect unless the forward pass computes in float16."""
    return torch.amp.GradScaler(device.type, enabled=compute_dtype(device) is torch.float16)


def update_scale(scaler: torch.amp.GradScaler, device: torch.device) -> Bool[Tensor, ""]:
    """Update the scale of the loss after a gradient, and return True if the scale may be the cause of a gradient that was not finite.

    A scale that was 1 or less, or that stayed the same, is not the cause.
    """
    one = torch.ones((), device=device)
    before = scaler.scale(one)
    scaler.update()
    return (before > 1) & (scaler.scale(one) < before)

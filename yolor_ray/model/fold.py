"""Fold constants around a convolution into it, exactly, at the border too.

What follows a convolution W, b and is linear per channel, y → s y + t (batch norm, implicit vectors), gives W' = s W and
b' = s b + t (paper equation 10 and its like). What stands before it, x → m x + a, gives W' = W m (equation 9) and adds to
every output what W makes of a; a zero-padded convolution sees no a beyond the border, so there that is not one number per
channel but a map. All is computed in float64 and stored in the convolution's own type.
Legend: I and O channels in and out, N channels of a constant, G groups.
"""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class BorderConv(nn.Module):
    """Convolve, and add what the taps make of a constant 1 under the same padding: less at the border than inside."""

    taps: Tensor

    def __init__(self, conv: nn.Conv2d, taps: Float[Tensor, "O _ _"]) -> None:
        super().__init__()
        self.conv = conv
        self.register_buffer("taps", taps.unsqueeze(1).to(conv.weight.dtype))

    def forward(self, x: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O _ _"]:
        """Return conv(x) plus the constant's map, which depends on the size of x alone."""
        ones = x.new_ones(1, 1, *x.shape[2:])
        conv = self.conv
        return conv(x) + F.conv2d(ones, self.taps, None, conv.stride, conv.padding, conv.dilation)


def fold_after(conv: nn.Conv2d, scale: Float[Tensor, "O"], shift: Float[Tensor, "O"]) -> nn.Conv2d:
    """Return the convolution that answers scale · conv(x) + shift."""
    bias = shift.double() if conv.bias is None else scale.double() * conv.bias.double() + shift.double()
    return _like(conv, conv.weight.double() * scale.double().view(-1, 1, 1, 1), bias)


def fold_scale_before(conv: nn.Conv2d, scale: Float[Tensor, "I"]) -> nn.Conv2d:
    """Return the convolution that answers conv(scale · x); padding stays zero, so it is exact everywhere."""
    weight = conv.weight.double() * _per_output(conv, scale)[:, :, None, None]
    return _like(conv, weight, None if conv.bias is None else conv.bias.double())


def fold_shift_before(conv: nn.Conv2d, shift: Float[Tensor, "I"]) -> nn.Conv2d | BorderConv:
    """Return what answers conv(x + shift)."""
    taps = (conv.weight.double() * _per_output(conv, shift)[:, :, None, None]).sum(dim=1)
    return _add_taps(conv, conv.weight.double(), taps)


def fold_concat_before(conv: nn.Conv2d, prior: Float[Tensor, "N"]) -> nn.Conv2d | BorderConv:
    """Return what answers conv(cat(prior, x)) from x alone; with groups, each group's prior comes before its features."""
    per_group = len(prior) // conv.groups
    about_prior, about_x = conv.weight.double().split((per_group, conv.weight.shape[1] - per_group), dim=1)
    taps = (about_prior * _per_output(conv, prior)[:, :, None, None]).sum(dim=1)
    return _add_taps(conv, about_x, taps)


def _per_output(conv: nn.Conv2d, constant: Tensor) -> Float[Tensor, "O _"]:
    """Return the constant's numbers that each output channel meets: those of its own group."""
    return constant.double().view(conv.groups, -1).repeat_interleave(conv.out_channels // conv.groups, dim=0)


def _add_taps(conv: nn.Conv2d, weight: Tensor, taps: Float[Tensor, "O _ _"]) -> nn.Conv2d | BorderConv:
    if conv.padding_mode != "zeros":
        raise ValueError(f"padding_mode: found {conv.padding_mode!r}, expected 'zeros'")
    bias = torch.zeros_like(taps[:, 0, 0]) if conv.bias is None else conv.bias.double()
    if any(_padding(conv)):
        return BorderConv(_like(conv, weight, bias), taps)
    return _like(conv, weight, bias + taps.sum(dim=(1, 2)))


def _padding(conv: nn.Conv2d) -> tuple[int, ...]:
    if isinstance(conv.padding, str):
        raise ValueError(f"padding: found {conv.padding!r}, expected numbers")
    return conv.padding


def _like(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """Return a frozen convolution with the strides, padding and groups of `conv`."""
    folded = copy.deepcopy(conv)
    dtype = conv.weight.dtype
    folded.in_channels = weight.shape[1] * conv.groups
    folded.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    folded.bias = None if bias is None else nn.Parameter(bias.to(dtype), requires_grad=False)
    return folded

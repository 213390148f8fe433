"""Fold constants before and after a convolution (W, b) into the convolution, exactly, including the border.

After the convolution: y -> s y + t, as in batch norm and implicit vectors, gives W' = s W and b' = s b + t (paper equation 10
for s = 1). Before the convolution: x -> m x gives W' = W m (equation 9), and x -> x + a adds the response of W to the constant a.
Zero padding contains no a, so the response of a padded convolution is a map instead of one number per channel.
x -> Z x gives W' = W Z.
Folds are computed in float64 and stored in the convolution's dtype.
Legend: B images, I O channels in and out, H W cells, N channels of a constant.
"""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from yolor_ray.model.implicit import unproject_weight


class BorderConv(nn.Module):
    """Convolution plus the response of its taps to a constant 1 under the same zero padding: smaller at the border than inside."""

    taps: Tensor

    def __init__(self, conv: nn.Conv2d, taps: Float[Tensor, "O _ _"]) -> None:
        super().__init__()
        self.conv = conv
        self.register_buffer("taps", taps.unsqueeze(1).to(conv.weight.dtype))

    def forward(self, x: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O _ _"]:
        """Return conv(x) plus the map of the constant, which depends on the size of x alone."""
        ones = x.new_ones(1, 1, *x.shape[2:])
        conv = self.conv
        return conv(x) + F.conv2d(ones, self.taps, None, conv.stride, conv.padding, conv.dilation)


def fold_after(conv: nn.Conv2d, scale: Float[Tensor, "O"], shift: Float[Tensor, "O"]) -> nn.Conv2d:
    """Return a convolution equal to scale · conv(x) + shift (equation 10)."""
    bias = shift.double() if conv.bias is None else scale.double() * conv.bias.double() + shift.double()
    return _copy_with_weights(conv, conv.weight.double() * scale.double().view(-1, 1, 1, 1), bias)


def fold_scale_before(conv: nn.Conv2d, scale: Float[Tensor, "I"]) -> nn.Conv2d:
    """Return a convolution equal to conv(scale · x) (equation 9); a scaled zero padding stays zero, so the border is exact too."""
    weight = conv.weight.double() * _expand_to_outputs(conv, scale)[:, :, None, None]
    return _copy_with_weights(conv, weight, None if conv.bias is None else conv.bias.double())


def fold_shift_before(conv: nn.Conv2d, shift: Float[Tensor, "I"]) -> nn.Conv2d | BorderConv:
    """Return a module equal to conv(x + shift); a `BorderConv` if the convolution is padded."""
    taps = (conv.weight.double() * _expand_to_outputs(conv, shift)[:, :, None, None]).sum(dim=1)
    return _add_taps(conv, conv.weight.double(), taps)


def fold_concat_before(conv: nn.Conv2d, prior: Float[Tensor, "N"]) -> nn.Conv2d | BorderConv:
    """Return a module of x alone that is equal to conv(cat(prior, x)); in each group the prior precedes the features."""
    prior_channels = len(prior) // conv.groups
    prior_weight, feature_weight = conv.weight.double().split((prior_channels, conv.weight.shape[1] - prior_channels), dim=1)
    taps = (prior_weight * _expand_to_outputs(conv, prior)[:, :, None, None]).sum(dim=1)
    return _add_taps(conv, feature_weight, taps)


def fold_projection_before(conv: nn.Conv2d, z: Float[Tensor, "_ I"]) -> nn.Conv2d:
    """Return a convolution equal to conv(Z x); projected zero padding stays zero, so the border is exact too."""
    return _copy_with_weights(conv, unproject_weight(conv.weight.double(), z), None if conv.bias is None else conv.bias.double())


def _expand_to_outputs(conv: nn.Conv2d, constant: Tensor) -> Float[Tensor, "O _"]:
    """Return, for each output channel, the part of the constant that belongs to the channel's group."""
    return constant.double().view(conv.groups, -1).repeat_interleave(conv.out_channels // conv.groups, dim=0)


def _add_taps(conv: nn.Conv2d, weight: Tensor, taps: Float[Tensor, "O _ _"]) -> nn.Conv2d | BorderConv:
    if conv.padding_mode != "zeros":
        raise ValueError(f"padding_mode: found {conv.padding_mode!r}, expected 'zeros'")
    if isinstance(conv.padding, str):
        raise ValueError(f"padding: found {conv.padding!r}, expected numbers")
    bias = torch.zeros_like(taps[:, 0, 0]) if conv.bias is None else conv.bias.double()
    if any(conv.padding):
        return BorderConv(_copy_with_weights(conv, weight, bias), taps)
    return _copy_with_weights(conv, weight, bias + taps.sum(dim=(1, 2)))


def _copy_with_weights(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """Return a frozen convolution with new weights and the strides, padding and groups of `conv`."""
    folded = copy.deepcopy(conv)
    dtype = conv.weight.dtype
    folded.in_channels = weight.shape[1] * conv.groups
    folded.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    folded.bias = None if bias is None else nn.Parameter(bias.to(dtype), requires_grad=False)
    return folded

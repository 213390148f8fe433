"""Fold batch norm and implicit vectors into convolutions; predictions stay the same, the constants disappear.

Exact in eval mode. Around the prediction convolution (weights W, bias b, prior a before, m after):
W' = m W and b' = m (b + W a), in that order (paper equations 9 and 10 combined). Folded in float64, stored as found.
"""

import copy

import torch
from torch import Tensor, nn

from yolor_ray.model.heads import DetectLevel
from yolor_ray.model.implicit import ImplicitAdd, ImplicitMultiply
from yolor_ray.model.layers import Conv, Merge
from yolor_ray.model.network import Yolor


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return s and t with BN(x) = s x + t at the running statistics, in float64."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - scale * norm.running_mean.double()


def _with_bias(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """Return a convolution like `conv` with this weight and bias."""
    fused = copy.deepcopy(conv)
    fused.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    fused.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)
    return fused


def _fold_norm(conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> nn.Conv2d:
    return _with_bias(conv, conv.weight.double() * scale.view(-1, 1, 1, 1), shift)


def _fuse_conv(module: Conv) -> None:
    if isinstance(module.norm, nn.BatchNorm2d):
        module.conv = _fold_norm(module.conv, *_scale_and_shift(module.norm))
        module.norm = nn.Identity()


class _SplitJoint(nn.Module):
    """Scale, shift and activate the main half; the side half was folded and is only activated."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale.view(1, -1, 1, 1))
        self.register_buffer("shift", shift.view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(x * self.scale + self.shift)


def _fuse_merge(module: Merge) -> None:
    """Fold the joint norm of the paper branch: its side half into the bare side convolution, its main half to a scale and shift."""
    side = module.side
    if not (isinstance(side, nn.Conv2d) and isinstance(module.joint, nn.Sequential) and isinstance(module.joint[0], nn.BatchNorm2d)):
        return
    dtype = side.weight.dtype
    scale, shift = _scale_and_shift(module.joint[0])
    half = len(scale) // 2
    module.side = _fold_norm(side, scale[half:], shift[half:])
    ones, zeros = torch.ones_like(scale[half:]), torch.zeros_like(shift[half:])
    module.joint = _SplitJoint(torch.cat((scale[:half], ones)).to(dtype), torch.cat((shift[:half], zeros)).to(dtype))


def _fuse_level(level: DetectLevel) -> None:
    if isinstance(level.align, ImplicitAdd) and isinstance(level.refine, ImplicitMultiply):
        assert level.predict.bias is not None
        weight, bias = level.predict.weight.double(), level.predict.bias.double()
        shift, gain = level.align.z.double(), level.refine.z.double()
        bias = gain * (bias + weight[:, :, 0, 0] @ shift)
        level.predict = _with_bias(level.predict, weight * gain.view(-1, 1, 1, 1), bias)
        level.align, level.refine = nn.Identity(), nn.Identity()


@torch.no_grad()
def fuse(network: Yolor) -> Yolor:
    """Return a folded copy in eval mode, without batch norm and implicit tensors; folding a folded network changes nothing."""
    fused = copy.deepcopy(network).eval()
    for module in list(fused.modules()):
        if isinstance(module, Conv):
            _fuse_conv(module)
        elif isinstance(module, Merge):
            _fuse_merge(module)
        elif isinstance(module, DetectLevel):
            _fuse_level(module)
    return fused.requires_grad_(False)


def is_fused(network: nn.Module) -> bool:
    """Tell whether no batch norm and no implicit tensor is left."""
    return not any(isinstance(m, nn.BatchNorm2d | nn.SyncBatchNorm | ImplicitAdd | ImplicitMultiply) for m in network.modules())

"""Fold batch norm and implicit knowledge into the convolutions; predictions stay the same, the constants disappear.

Exact in eval mode. Around the prediction convolution of the published networks (weights W, bias b, prior a before, m
after): W' = m W and b' = m (b + W a), in that order (paper equations 9 and 10 combined).
"""

import copy

import torch
from torch import Tensor, nn

from yolor_ray.model.fold import BorderConv, fold_after, fold_concat_before, fold_scale_before, fold_shift_before
from yolor_ray.model.heads.embed import EmbedHead
from yolor_ray.model.heads.prediction_level import PredictionLevel
from yolor_ray.model.implicit import Implicit
from yolor_ray.model.layers import Conv, CspBlock, Merge, NeckBlock, SppCsp
from yolor_ray.model.network import Yolor

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
FOLDED = (*NORMS, Implicit)
"""What a fused network has none of."""


def _scale_and_shift(norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> tuple[Tensor, Tensor]:
    """Return s and t with BN(x) = s x + t at the running statistics, in float64."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - scale * norm.running_mean.double()


def _fuse_conv(module: Conv) -> None:
    assert isinstance(module.conv, nn.Conv2d) and isinstance(module.norm, NORMS)
    module.conv, module.norm = fold_after(module.conv, *_scale_and_shift(module.norm)), nn.Identity()


class _SplitJoint(nn.Module):
    """Scale, shift and activate the main half; the side half was folded and is only activated."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor, act: nn.Module) -> None:
        super().__init__()
        self.register_buffer("scale", scale.view(1, -1, 1, 1))
        self.register_buffer("shift", shift.view(1, -1, 1, 1))
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x * self.scale + self.shift)


def _fuse_joint(module: Merge, main: nn.Module) -> nn.Module:
    """Fold the joint norm of the paper branch and return the convolution that the main half comes from, folded.

    Its side half goes into the bare side convolution, its main half into the bare convolution `main` where there is one;
    else, behind an activation, it stays as a scale and shift.
    """
    norm, act = module.joint if isinstance(module.joint, nn.Sequential) else (None, None)
    side = module.side
    if not (isinstance(side, nn.Conv2d) and isinstance(norm, NORMS) and act is not None):
        return main
    dtype, (scale, shift) = side.weight.dtype, _scale_and_shift(norm)
    half = len(scale) // 2
    module.side = fold_after(side, scale[half:], shift[half:])
    if isinstance(main, nn.Conv2d):
        module.joint = act
        return fold_after(main, scale[:half], shift[:half])
    ones, zeros = torch.ones_like(scale[half:]), torch.zeros_like(shift[half:])
    scale, shift = torch.cat((scale[:half], ones)).to(dtype), torch.cat((shift[:half], zeros)).to(dtype)
    module.joint = _SplitJoint(scale, shift, act)
    return main


def _fold_implicit_before(conv: nn.Conv2d, implicit: nn.Module) -> nn.Conv2d | BorderConv:
    """Return what answers as the convolution behind the implicit knowledge does."""
    if not isinstance(implicit, Implicit):
        return conv
    g = implicit.constant()
    if implicit.operator == "add":
        return fold_shift_before(conv, g)
    return fold_concat_before(conv, g) if implicit.operator == "concat" else fold_scale_before(conv, g)


def _fold_implicit_after(conv: nn.Conv2d, implicit: nn.Module) -> nn.Conv2d:
    if not isinstance(implicit, Implicit):
        return conv
    g = implicit.constant()
    if implicit.operator == "add":
        return fold_after(conv, torch.ones_like(g), g)
    return fold_after(conv, g, torch.zeros_like(g))


def _ungrouped(conv: nn.Conv2d) -> nn.Conv2d:
    """Return the convolution on one copy of features that every group of `conv` sees alike: the weights are the same."""
    conv.in_channels, conv.groups = conv.weight.shape[1], 1
    return conv


def _fuse_level(level: PredictionLevel) -> None:
    """Fold what is linear after each convolution first, then what stands before it; the level's norm is folded by now."""
    assert isinstance(level.conv.conv, nn.Conv2d) and isinstance(level.predict, nn.Conv2d)
    level.conv.conv = _fold_implicit_before(level.conv.conv, level.pyramid)
    if isinstance(level.norm, NORMS):
        level.predict, level.norm = fold_after(level.predict, *_scale_and_shift(level.norm)), nn.Identity()
    aligned = _fold_implicit_before(level.predict, level.align)
    assert isinstance(aligned, nn.Conv2d), "a 1x1 convolution has no border"
    level.predict = _ungrouped(_fold_implicit_after(aligned, level.refine))
    level.pyramid, level.align, level.refine = nn.Identity(), nn.Identity(), nn.Identity()


@torch.no_grad()
def fuse(network: Yolor) -> Yolor:
    """Return a folded copy in eval mode, without batch norm and implicit tensors.

    Raises ValueError for a network that is folded already: folding what is left once more would count it twice.
    """
    if is_fused(network):
        raise ValueError("the network is fused already: found no batch norm and no implicit tensor to fold")
    fused = copy.deepcopy(network).eval()
    modules = list(fused.modules())
    for conv in (m for m in modules if isinstance(m, Conv)):
        _fuse_conv(conv)
    for block in (m for m in modules if isinstance(m, CspBlock)):
        block.last = _fuse_joint(block.merge, block.last)
    for merge in (m.merge for m in modules if isinstance(m, NeckBlock | SppCsp)):
        _fuse_joint(merge, nn.Identity())
    for level in (m for m in modules if isinstance(m, PredictionLevel)):
        _fuse_level(level)
    for head in (m for m in modules if isinstance(m, EmbedHead)):
        head.proxies = None
    return fused.requires_grad_(False)


def is_fused(network: nn.Module) -> bool:
    """Tell whether no batch norm and no implicit tensor is left."""
    return not any(isinstance(m, FOLDED) for m in network.modules())

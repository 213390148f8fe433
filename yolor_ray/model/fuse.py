"""Fuse a network: fold batch norm and implicit knowledge into the convolutions without changing a prediction.

Fusing is exact in eval mode. A prediction convolution (weights W, bias b) has a prior a before and a prior m after. Fused, W' = m W
and b' = m (b + W a), in this order (paper equations 9 and 10 combined).
"""

import copy

import torch
from torch import Tensor, nn

from yolor_ray.model.fold import (
    BorderConv,
    fold_after,
    fold_concat_before,
    fold_projection_before,
    fold_scale_before,
    fold_shift_before,
)
from yolor_ray.model.heads.embed import EmbedHead
from yolor_ray.model.heads.prediction_level import PredictionLevel
from yolor_ray.model.implicit import IMPLICIT_MODULES, Implicit, Projection
from yolor_ray.model.layers import Conv, CspBlock, Merge, NeckBlock, SppCsp
from yolor_ray.model.network import Yolor

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
FOLDABLE_MODULES = (*NORMS, *IMPLICIT_MODULES)
"""Module classes that a fused network does not contain."""


def _norm_affine(norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> tuple[Tensor, Tensor]:
    """Return scale s and shift t with BN(x) = s x + t at the running statistics, (C,) each, in float64."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - scale * norm.running_mean.double()


class _FusedJointNorm(nn.Module):
    """Fused joint norm behind an activation: scales and shifts the main half and activates both halves.

    The side half has scale 1 and shift 0, because its part of the norm is folded into the side convolution.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor, act: nn.Module) -> None:
        super().__init__()
        self.register_buffer("scale", scale.view(1, -1, 1, 1))
        self.register_buffer("shift", shift.view(1, -1, 1, 1))
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x * self.scale + self.shift)


def _fuse_joint_norm(merge: Merge, main: nn.Module) -> nn.Module:
    """Fold the joint norm of the paper branch and return the module that replaces `main`, the last one of the main path.

    The side half of the norm is folded into the bare side convolution. The main half is folded into `main` if that is a bare
    convolution. Otherwise the main path ends in an activation, and the main half stays as a scale and a shift.
    """
    norm, act = merge.joint if isinstance(merge.joint, nn.Sequential) else (None, None)
    side = merge.side
    if not (isinstance(side, nn.Conv2d) and isinstance(norm, NORMS) and act is not None):
        return main
    dtype, (scale, shift) = side.weight.dtype, _norm_affine(norm)
    half = len(scale) // 2
    merge.side = fold_after(side, scale[half:], shift[half:])
    if isinstance(main, nn.Conv2d):
        merge.joint = act
        return fold_after(main, scale[:half], shift[:half])
    ones, zeros = torch.ones_like(scale[half:]), torch.zeros_like(shift[half:])
    scale, shift = torch.cat((scale[:half], ones)).to(dtype), torch.cat((shift[:half], zeros)).to(dtype)
    merge.joint = _FusedJointNorm(scale, shift, act)
    return main


def _fold_implicit_before(conv: nn.Conv2d, implicit: nn.Module) -> nn.Conv2d | BorderConv:
    """Return a module equal to implicit knowledge followed by the convolution."""
    if isinstance(implicit, Projection):
        return fold_projection_before(conv, implicit.z)
    if not isinstance(implicit, Implicit):
        return conv
    g = implicit.constant()
    if implicit.operator == "add":
        return fold_shift_before(conv, g)
    return fold_concat_before(conv, g) if implicit.operator == "concat" else fold_scale_before(conv, g)


def _fold_implicit_after(conv: nn.Conv2d, implicit: nn.Module) -> nn.Conv2d:
    """Return a convolution equal to the convolution followed by implicit knowledge."""
    return fold_after(conv, *implicit.scale_and_shift()) if isinstance(implicit, Implicit) else conv


def _fuse_level(level: PredictionLevel) -> None:
    """Fold the norm and the implicit knowledge of a prediction level; the norm of `level.conv` is folded already.

    A norm after a convolution is folded before the prior in front of that convolution, because a `BorderConv` takes no further fold.
    """
    assert isinstance(level.conv.conv, nn.Conv2d) and isinstance(level.predict, nn.Conv2d)
    level.conv.conv = _fold_implicit_before(level.conv.conv, level.pyramid)
    aligned = _fold_implicit_before(level.predict, level.align)
    if isinstance(level.centre, NORMS):
        # Each group sees all features.
        scale, shift = (constant.repeat(level.predict.groups) for constant in _norm_affine(level.centre))
        aligned = fold_scale_before(_without_border(fold_shift_before(_without_border(aligned), shift)), scale)
    level.predict = _fold_implicit_after(_without_border(aligned), level.refine)
    # All groups see the same features now, so an ungrouped convolution with the same weights is equal.
    level.predict.in_channels, level.predict.groups = level.predict.weight.shape[1], 1
    level.pyramid, level.centre, level.align, level.refine = (nn.Identity() for _ in range(4))


def _without_border(conv: nn.Conv2d | BorderConv) -> nn.Conv2d:
    assert isinstance(conv, nn.Conv2d), "a 1x1 convolution has no border"
    return conv


@torch.no_grad()
def fuse(network: Yolor) -> Yolor:
    """Return a fused copy in eval mode, without batch norm, implicit tensors and proxies; its parameters are frozen.

    Raises:
        ValueError: the network is fused already; folding twice would count a constant twice.
    """
    if is_fused(network):
        raise ValueError("the network is fused already: found no batch norm and no implicit tensor to fold")
    fused = copy.deepcopy(network).eval()
    modules = list(fused.modules())
    for block in (m for m in modules if isinstance(m, Conv)):
        assert isinstance(block.conv, nn.Conv2d) and isinstance(block.norm, NORMS)
        block.conv, block.norm = fold_after(block.conv, *_norm_affine(block.norm)), nn.Identity()
    for csp_block in (m for m in modules if isinstance(m, CspBlock)):
        csp_block.last = _fuse_joint_norm(csp_block.merge, csp_block.last)
    for merge in (m.merge for m in modules if isinstance(m, NeckBlock | SppCsp)):
        _fuse_joint_norm(merge, nn.Identity())
    for level in (m for m in modules if isinstance(m, PredictionLevel)):
        _fuse_level(level)
    for head in (m for m in modules if isinstance(m, EmbedHead)):
        head.proxies = None
    return fused.requires_grad_(False)


def is_fused(network: nn.Module) -> bool:
    """Return True if the network has no batch norm and no implicit tensor."""
    return not any(isinstance(m, FOLDABLE_MODULES) for m in network.modules())

"""Convolution blocks of the YOLOR family. The classes are the blocks of the released networks (CSP, CSPF, CSP2, SPPCSP, DownC).

Legend: B images, C channels, H W cells. Every block maps (B, C_in, H, W) to (B, C_out, H', W').
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from yolor_ray.config import NetworkConfig

FeatureMap = Float[Tensor, "B _ _ _"]
"""Features of a batch, (B, C, H, W); the docstring of a block states C, H and W where they change."""

NORM_MOMENTUM = 0.03
ACTIVATIONS: dict[str, Callable[..., Tensor]] = {"silu": F.silu, "mish": F.mish}


@dataclass(frozen=True)
class ConvSettings:
    """Common settings of all convolutions of a network."""

    eps: float
    """Batch norm epsilon."""
    activation: Literal["silu", "mish"]
    """Activation after each batch norm."""


def conv_settings(config: NetworkConfig) -> ConvSettings:
    """Return the settings that all convolutions of a network share."""
    return ConvSettings(config.norm_eps, config.activation)


class Activation(nn.Module):
    """SiLU or Mish; in place only without gradients, because autograd copies the input of an activation in place."""

    def __init__(self, name: Literal["silu", "mish"]) -> None:
        super().__init__()
        self._name = name

    def forward(self, x: FeatureMap) -> FeatureMap:
        """Return the activated features."""
        return ACTIVATIONS[self._name](x, inplace=not torch.is_grad_enabled())


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that does not count its batches: with a fixed momentum nothing reads the count, and each norm would launch a kernel."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__(channels, eps=eps, momentum=NORM_MOMENTUM)

    def forward(self, x: FeatureMap) -> FeatureMap:
        """Return the normalised features."""
        assert self.momentum is not None
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps)


class Conv(nn.Module):
    """Convolution without bias, batch norm and activation."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1, *, settings: ConvSettings) -> None:
        super().__init__()
        self.conv: nn.Module = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
        self.norm: nn.Module = BatchNorm(c_out, settings.eps)
        self.act = Activation(settings.activation)

    def forward(self, x: FeatureMap) -> FeatureMap:
        """Return act(BN(conv(x))): (B, C_in, H, W) -> (B, C_out, H/stride, W/stride)."""
        return self.act(self.norm(self.conv(x)))


class Bottleneck(nn.Module):
    """1x1 and 3x3 convolution f, with a shortcut x + f(x) in the backbone."""

    def __init__(self, channels: int, hidden: int, *, shortcut: bool, settings: ConvSettings) -> None:
        super().__init__()
        self.squeeze = Conv(channels, hidden, settings=settings)
        self.expand = Conv(hidden, channels, 3, settings=settings)
        self.shortcut = shortcut

    def forward(self, x: FeatureMap) -> FeatureMap:
        """Return x + f(x), or f(x) without the shortcut, in the shape of x."""
        y = self.expand(self.squeeze(x))
        return x + y if self.shortcut else y


class Merge(nn.Module):
    """Merge of the main path with a 1x1 side path: cat(main, side), then 1x1.

    Main branch: the side path is a complete `Conv`. Paper branch (`joint_norm`): the side path is a bare convolution, and
    one batch norm and activation (`joint`) follow the concatenation.
    """

    def __init__(self, c_side: int, hidden: int, c_out: int, *, joint_norm: bool, settings: ConvSettings) -> None:
        super().__init__()
        self.side: nn.Module = nn.Conv2d(c_side, hidden, 1, bias=False) if joint_norm else Conv(c_side, hidden, settings=settings)
        self.joint: nn.Module = (
            nn.Sequential(BatchNorm(2 * hidden, settings.eps), Activation(settings.activation)) if joint_norm else nn.Identity()
        )
        self.out = Conv(2 * hidden, c_out, settings=settings)

    def forward(self, main: FeatureMap, side: FeatureMap) -> FeatureMap:
        """Merge main (B, hidden, H, W) and side (B, c_side, H, W) into (B, c_out, H, W)."""
        return self.out(self.joint(torch.cat((main, self.side(side)), dim=1)))


class CspBlock(nn.Module):
    """Backbone block: half of the channels pass through residual bottlenecks, the other half through a 1x1 side path.

    `last` is the 1x1 after the bottlenecks: a `Conv` in CSP blocks of the main branch, a bare convolution under
    `joint_norm`, and an identity in CSPF ("fusion first") blocks.
    """

    def __init__(self, c_in: int, channels: int, depth: int, *, fusion_first: bool, joint_norm: bool, settings: ConvSettings) -> None:
        super().__init__()
        hidden = channels // 2
        self.first = Conv(c_in, hidden, settings=settings)
        self.bottlenecks = nn.Sequential(*(Bottleneck(hidden, hidden, shortcut=True, settings=settings) for _ in range(depth)))
        self.last: nn.Module = nn.Identity()
        if not fusion_first:
            self.last = nn.Conv2d(hidden, hidden, 1, bias=False) if joint_norm else Conv(hidden, hidden, settings=settings)
        self.merge = Merge(c_in, hidden, channels, joint_norm=joint_norm, settings=settings)

    def forward(self, x: FeatureMap) -> FeatureMap:
        """Map (B, c_in, H, W) to (B, channels, H, W)."""
        return self.merge(self.last(self.bottlenecks(self.first(x))), x)


class NeckBlock(nn.Module):
    """Neck block (CSP2): a 1x1, then bottlenecks without shortcut beside a 1x1 side path."""

    def __init__(self, c_in: int, c_out: int, depth: int, *, joint_norm: bool, settings: ConvSettings) -> None:
        super().__init__()
        self.first = Conv(c_in, c_out, settings=settings)
        self.bottlenecks = nn.Sequential(*(Bottleneck(c_out, c_out, shortcut=False, settings=settings) for _ in range(depth)))
        self.merge = Merge(c_out, c_out, c_out, joint_norm=joint_norm, settings=settings)

    def forward(self, x: FeatureMap) -> FeatureMap:
        """Map (B, c_in, H, W) to (B, c_out, H, W)."""
        x = self.first(x)
        return self.merge(self.bottlenecks(x), x)


class SppCsp(nn.Module):
    """Spatial pyramid pooling (SPP) over 5, 9 and 13 cells inside a CSP block: the coarsest level sees the whole image."""

    def __init__(self, c_in: int, c_out: int, pairs: int, *, joint_norm: bool, settings: ConvSettings) -> None:
        super().__init__()
        self.before = nn.Sequential(
            Conv(c_in, c_out, settings=settings), Conv(c_out, c_out, 3, settings=settings), Conv(c_out, c_out, settings=settings)
        )
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)
        after = [Conv(4 * c_out, c_out, settings=settings), Conv(c_out, c_out, 3, settings=settings)]
        for _ in range(pairs - 1):
            after += [Conv(c_out, c_out, settings=settings), Conv(c_out, c_out, 3, settings=settings)]
        self.after = nn.Sequential(*after)
        self.merge = Merge(c_in, c_out, c_out, joint_norm=joint_norm, settings=settings)

    def forward(self, x: FeatureMap) -> FeatureMap:
        """Map (B, c_in, H, W) to (B, c_out, H, W)."""
        y = self.before(x)
        # Two 5-pools equal a 9-pool and three equal a 13-pool: exact and faster.
        pool_5 = self.pool(y)
        pool_9 = self.pool(pool_5)
        pool_13 = self.pool(pool_9)
        return self.merge(self.after(torch.cat((y, pool_5, pool_9, pool_13), dim=1)), x)


class DownC(nn.Module):
    """Down-sampling by a strided convolution beside max pooling (E6, D6)."""

    def __init__(self, c_in: int, c_out: int, *, settings: ConvSettings) -> None:
        super().__init__()
        self.conv = nn.Sequential(Conv(c_in, c_in, settings=settings), Conv(c_in, c_out // 2, 3, 2, settings=settings))
        self.pool = nn.Sequential(nn.MaxPool2d(2), Conv(c_in, c_out // 2, settings=settings))

    def forward(self, x: FeatureMap) -> FeatureMap:
        """Return cat(conv, pool): (B, c_in, H, W) -> (B, c_out, H/2, W/2)."""
        return torch.cat((self.conv(x), self.pool(x)), dim=1)


class ReOrg(nn.Module):
    """Space to depth: each 2x2 patch becomes channels, in (row, column) parity order (0,0), (1,0), (0,1), (1,1)."""

    def forward(self, x: FeatureMap) -> FeatureMap:
        """Map (B, C, H, W) to (B, 4C, H/2, W/2); `pixel_unshuffle` has another channel order."""
        return torch.cat((x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]), dim=1)


class Wavelet(nn.Module):
    """Haar wavelet coefficients of each 2x2 patch: the means of an image in 0..1 stay in 0..1, the differences are centred on 0.5."""

    def forward(self, x: FeatureMap) -> FeatureMap:
        """Map (B, C, H, W) to (B, 4C, H/2, W/2).

        The means of all channels come first. Per channel follow the differences between rows, between columns, and of both.
        """
        a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
        details = torch.stack((a + b - c - d, a - b + c - d, a - b - c + d), dim=2).flatten(1, 2)
        return torch.cat(((a + b + c + d) / 4, details / 4 + 0.5), dim=1)

"""Build the blocks of the YOLOR family from convolutions; every block names its channels in and out.

Legend: B images, C channels, H W cells.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from yolor_ray.config import NetworkConfig

Image = Float[Tensor, "B _ _ _"]
"""Features of a batch: images, channels, rows, columns; each block says what it does to the last three."""

NORM_MOMENTUM = 0.03
ACTIVATIONS = {"silu": nn.SiLU, "mish": nn.Mish}


@dataclass(frozen=True)
class ConvSettings:
    """Say what all convolutions of a network share."""

    eps: float
    """Batch norm epsilon."""
    activation: Literal["silu", "mish"]
    """What follows each batch norm."""


def conv_settings(config: NetworkConfig) -> ConvSettings:
    """Return what all convolutions of a network share."""
    return ConvSettings(config.norm_eps, config.activation)


class Conv(nn.Module):
    """Convolve without bias, normalise, activate."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1, *, style: ConvSettings) -> None:
        super().__init__()
        self.conv: nn.Module = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(c_out, eps=style.eps, momentum=NORM_MOMENTUM)
        self.act = ACTIVATIONS[style.activation](inplace=True)

    def forward(self, x: Image) -> Image:
        """Return act(BN(conv(x)))."""
        return self.act(self.norm(self.conv(x)))


class Bottleneck(nn.Module):
    """Squeeze (1x1), convolve (3x3) and, in the backbone, add the input."""

    def __init__(self, channels: int, hidden: int, *, shortcut: bool, style: ConvSettings) -> None:
        super().__init__()
        self.squeeze = Conv(channels, hidden, style=style)
        self.expand = Conv(hidden, channels, 3, style=style)
        self.shortcut = shortcut

    def forward(self, x: Image) -> Image:
        """Return x + f(x), or f(x) without the shortcut."""
        y = self.expand(self.squeeze(x))
        return x + y if self.shortcut else y


class Merge(nn.Module):
    """Join the main path with a 1x1 side path: cat(main, side), then 1x1.

    With `joint_norm` the side convolution is bare, and one batch norm and activation act on both halves (the paper branch).
    """

    def __init__(self, c_side: int, hidden: int, c_out: int, *, joint_norm: bool, style: ConvSettings) -> None:
        super().__init__()
        self.side: nn.Module = nn.Conv2d(c_side, hidden, 1, bias=False) if joint_norm else Conv(c_side, hidden, style=style)
        self.joint: nn.Module = (
            nn.Sequential(nn.BatchNorm2d(2 * hidden, eps=style.eps, momentum=NORM_MOMENTUM), ACTIVATIONS[style.activation](inplace=True))
            if joint_norm
            else nn.Identity()
        )
        self.out = Conv(2 * hidden, c_out, style=style)

    def forward(self, main: Image, side: Image) -> Image:
        """Return the merged paths."""
        return self.out(self.joint(torch.cat((main, self.side(side)), dim=1)))


class CspBlock(nn.Module):
    """Send half of the channels through residual bottlenecks, half past them (backbone).

    `last` is the 1x1 after the bottlenecks: a convolution in CSP blocks, bare under a joint norm, and nothing in CSPF ("fusion
    first") blocks.
    """

    def __init__(self, c_in: int, channels: int, depth: int, *, fusion_first: bool, joint_norm: bool, style: ConvSettings) -> None:
        super().__init__()
        hidden = channels // 2
        self.first = Conv(c_in, hidden, style=style)
        self.bottlenecks = nn.Sequential(*(Bottleneck(hidden, hidden, shortcut=True, style=style) for _ in range(depth)))
        self.last: nn.Module = nn.Identity()
        if not fusion_first:
            self.last = nn.Conv2d(hidden, hidden, 1, bias=False) if joint_norm else Conv(hidden, hidden, style=style)
        self.merge = Merge(c_in, hidden, channels, joint_norm=joint_norm, style=style)

    def forward(self, x: Image) -> Image:
        """Return the block's features."""
        return self.merge(self.last(self.bottlenecks(self.first(x))), x)


class NeckBlock(nn.Module):
    """Squeeze, then split into bottlenecks without shortcut and a 1x1 side path (CSP2)."""

    def __init__(self, c_in: int, c_out: int, depth: int, *, joint_norm: bool, style: ConvSettings) -> None:
        super().__init__()
        self.first = Conv(c_in, c_out, style=style)
        self.bottlenecks = nn.Sequential(*(Bottleneck(c_out, c_out, shortcut=False, style=style) for _ in range(depth)))
        self.merge = Merge(c_out, c_out, c_out, joint_norm=joint_norm, style=style)

    def forward(self, x: Image) -> Image:
        """Return the block's features."""
        x = self.first(x)
        return self.merge(self.bottlenecks(x), x)


class SppCsp(nn.Module):
    """Pool over 5, 9 and 13 cells inside a CSP block, so that the coarsest level sees the whole image."""

    def __init__(self, c_in: int, c_out: int, pairs: int, *, joint_norm: bool, style: ConvSettings) -> None:
        super().__init__()
        self.before = nn.Sequential(Conv(c_in, c_out, style=style), Conv(c_out, c_out, 3, style=style), Conv(c_out, c_out, style=style))
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)
        after = [Conv(4 * c_out, c_out, style=style), Conv(c_out, c_out, 3, style=style)]
        for _ in range(pairs - 1):
            after += [Conv(c_out, c_out, style=style), Conv(c_out, c_out, 3, style=style)]
        self.after = nn.Sequential(*after)
        self.merge = Merge(c_in, c_out, c_out, joint_norm=joint_norm, style=style)

    def forward(self, x: Image) -> Image:
        """Return the block's features; a 9-pool is two 5-pools and a 13-pool three, which is exact and faster."""
        y = self.before(x)
        pool_5 = self.pool(y)
        pool_9 = self.pool(pool_5)
        pool_13 = self.pool(pool_9)
        return self.merge(self.after(torch.cat((y, pool_5, pool_9, pool_13), dim=1)), x)


class DownC(nn.Module):
    """Halve the resolution by a strided convolution beside max pooling (E6, D6)."""

    def __init__(self, c_in: int, c_out: int, *, style: ConvSettings) -> None:
        super().__init__()
        self.conv = nn.Sequential(Conv(c_in, c_in, style=style), Conv(c_in, c_out // 2, 3, 2, style=style))
        self.pool = nn.Sequential(nn.MaxPool2d(2), Conv(c_in, c_out // 2, style=style))

    def forward(self, x: Image) -> Image:
        """Return cat(conv, pool) at half the resolution."""
        return torch.cat((self.conv(x), self.pool(x)), dim=1)


class ReOrg(nn.Module):
    """Turn each 2x2 patch into channels, in (row, column) parity order (0,0), (1,0), (0,1), (1,1)."""

    def forward(self, x: Image) -> Image:
        """Return (B, 4C, H/2, W/2); not the order of `pixel_unshuffle`."""
        return torch.cat((x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]), dim=1)


class Wavelet(nn.Module):
    """Turn each 2x2 patch into its Haar wavelet coefficients: means of 0..1 stay in 0..1, differences are put around 0.5."""

    def forward(self, x: Image) -> Image:
        """Return (B, 4C, H/2, W/2): all channels' means, then per channel the differences along rows, along columns, and of both."""
        a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
        details = torch.stack((a + b - c - d, a - b + c - d, a - b - c + d), dim=2).flatten(1, 2)
        return torch.cat(((a + b + c + d) / 4, details / 4 + 0.5), dim=1)

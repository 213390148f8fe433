"""Assemble a YOLOR network: stem -> backbone stages -> SPP -> pyramid neck (down, then up) -> heads.

Legend: B images, C channels, H W cells of a level, A anchors per cell, K classes, F = 5 + K numbers per anchor, L levels.
"""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn

from yolor_ray.config import Network as NetworkConfig
from yolor_ray.model.heads import DetectHead
from yolor_ray.model.layers import Bottleneck, Conv, CspBlock, DownC, NeckBlock, ReOrg, SppCsp


def _down(config: NetworkConfig, c_in: int, c_out: int) -> nn.Module:
    if config.down == "downc":
        return DownC(c_in, c_out, eps=config.norm_eps)
    return Conv(c_in, c_out, 3, 2, eps=config.norm_eps)


class Backbone(nn.Module):
    """Turn an image into one feature map per prediction level, stride 8 first."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        eps, widths, depths = config.norm_eps, config.widths, config.depths
        if config.stem == "reorg":
            self.stem = nn.Sequential(ReOrg(), Conv(12, config.stem_width, 3, eps=eps))
            c_in, first = config.stem_width, 0
        else:
            residuals = (Bottleneck(widths[0], widths[0] // 2, shortcut=True, eps=eps) for _ in range(depths[0]))
            self.stem = nn.Sequential(Conv(3, config.stem_width, 3, eps=eps), Conv(config.stem_width, widths[0], 3, 2, eps=eps), *residuals)
            c_in, first = widths[0], 1
        stages = []
        for width, depth in zip(widths[first:], depths[first:], strict=True):
            block = CspBlock(width, depth, fusion_first=config.block == "cspf", joint_norm=config.joint_norm, eps=eps)
            stages.append(nn.Sequential(_down(config, c_in, width), block))
            c_in = width
        self.stages = nn.ModuleList(stages)
        self.levels = config.levels

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """Return features at strides 8, 16, …."""
        x = self.stem(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features[-self.levels :]


class Neck(nn.Module):
    """Carry coarse features down to fine levels and back up (FPN, then PAN); level widths are halved."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        eps = config.norm_eps
        backbone = config.widths[-config.levels :]
        widths = [w // 2 for w in backbone]

        def block(width: int) -> NeckBlock:
            return NeckBlock(2 * width, width, config.neck_depth, joint_norm=config.joint_norm, eps=eps)

        self.spp = SppCsp(backbone[-1], widths[-1], config.spp_pairs, joint_norm=config.joint_norm, eps=eps)
        self.reduce = nn.ModuleList(Conv(coarse, fine, eps=eps) for fine, coarse in itertools.pairwise(widths))
        self.lateral = nn.ModuleList(Conv(full, half, eps=eps) for full, half in zip(backbone[:-1], widths[:-1], strict=True))
        self.top_down = nn.ModuleList(block(w) for w in widths[:-1])
        self.down = nn.ModuleList(_down(config, fine, coarse) for fine, coarse in itertools.pairwise(widths))
        self.bottom_up = nn.ModuleList(block(w) for w in widths[1:])

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Return one map per level, fine first."""
        x = self.spp(features[-1])
        pyramid = [x]
        for level in reversed(range(len(self.reduce))):
            upper = nn.functional.interpolate(self.reduce[level](x), scale_factor=2.0, mode="nearest")
            x = self.top_down[level](torch.cat((self.lateral[level](features[level]), upper), dim=1))
            pyramid.insert(0, x)
        outputs = [x]
        for level, (down, block) in enumerate(zip(self.down, self.bottom_up, strict=True)):
            x = block(torch.cat((down(x), pyramid[level + 1]), dim=1))
            outputs.append(x)
        return outputs


class Yolor(nn.Module):
    """Detect objects with shared explicit features and per-level implicit knowledge."""

    def __init__(self, config: NetworkConfig, classes: int, anchors: Float[Tensor, "L A 2"]) -> None:
        """Take the number of classes from the data set and the anchors in pixels, level by level."""
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.neck = Neck(config)
        self.head = DetectHead(config, classes, anchors)

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B A _ _ F"]]:
        """Return raw predictions per level from images in 0..1."""
        return self.head(self.neck(self.backbone(x)))

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.head.classes

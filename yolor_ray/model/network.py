"""Assemble a YOLOR network: stem -> backbone stages -> SPP -> pyramid neck (down, then up) -> heads.

Legend: B images, C channels, H W cells of a level, A anchors per cell, K classes, F = 5 + K numbers per anchor, L levels.
"""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn

from yolor_ray.boxes import xyxy_from_cxcywh
from yolor_ray.config import NetworkConfig
from yolor_ray.model.heads.detect import DetectHead
from yolor_ray.model.heads.prediction_level import OutputCounts, PredictionLevel
from yolor_ray.model.heads.registry import HEADS
from yolor_ray.model.layers import Bottleneck, Conv, CspBlock, DownC, NeckBlock, ReOrg, SppCsp, Wavelet, conv_settings


def _down(config: NetworkConfig, c_in: int, c_out: int) -> nn.Module:
    if config.down == "downc":
        return DownC(c_in, c_out, style=conv_settings(config))
    return Conv(c_in, c_out, 3, 2, style=conv_settings(config))


def _stem(config: NetworkConfig) -> tuple[nn.Sequential, int]:
    """Return the stem and its channels out: at stride 2 for conv stems and reorg, at stride 8 for those without a convolution."""
    style, width, first = conv_settings(config), config.stem_width, config.widths[0]
    if config.stem == "reorg":
        return nn.Sequential(ReOrg(), Conv(12, width, 3, style=style)), width
    if config.stem in ("s2d", "dwt"):
        kind = ReOrg if config.stem == "s2d" else Wavelet
        return nn.Sequential(kind(), kind(), kind()), 3 * 4**3
    start = Conv(3, width, 3, style=style), Conv(width, first, 3, 2, style=style)
    if config.stem == "csp":
        return nn.Sequential(*start, _block(config, first, first, config.depths[0])), first
    residuals = (Bottleneck(first, first // 2, shortcut=True, style=style) for _ in range(config.depths[0]))
    return nn.Sequential(*start, *residuals), first


def _block(config: NetworkConfig, c_in: int, width: int, depth: int) -> CspBlock:
    return CspBlock(c_in, width, depth, fusion_first=config.block == "cspf", joint_norm=config.joint_norm, style=conv_settings(config))


class Backbone(nn.Module):
    """Turn an image into one feature map per prediction level, stride 8 first."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.stem, c_in = _stem(config)
        first = 1 if config.stem in ("conv", "csp") else 0
        stages: list[nn.Sequential] = []
        for width, depth in zip(config.widths[first:], config.depths[first:], strict=True):
            # Without a convolution the stem is at the first stage's stride already.
            arrived = not stages and config.stem in ("s2d", "dwt")
            down = nn.Identity() if arrived else _down(config, c_in, width)
            stages.append(nn.Sequential(down, _block(config, c_in if arrived else width, width, depth)))
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
        style = conv_settings(config)
        backbone = config.widths[-config.levels :]
        widths = [w // 2 for w in backbone]

        def block(width: int) -> NeckBlock:
            return NeckBlock(2 * width, width, config.neck_depth, joint_norm=config.joint_norm, style=style)

        self.spp = SppCsp(backbone[-1], widths[-1], config.spp_pairs, joint_norm=config.joint_norm, style=style)
        self.reduce = nn.ModuleList(Conv(coarse, fine, style=style) for fine, coarse in itertools.pairwise(widths))
        self.lateral = nn.ModuleList(Conv(full, half, style=style) for full, half in zip(backbone[:-1], widths[:-1], strict=True))
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
    """Do several tasks on shared explicit features, each with implicit knowledge of its own on every level and prediction."""

    def __init__(
        self,
        config: NetworkConfig,
        classes: int,
        anchors: Float[Tensor, "L A 2"],
        *,
        image_classes: int = 0,
        keypoints: int = 0,
        identities: int = 0,
    ) -> None:
        """Take the anchors in pixels, level by level, and from the data set how many of each there are to tell apart."""
        super().__init__()
        self.config = config
        self.counts = counts = OutputCounts(classes, image_classes, keypoints, identities)
        self.backbone = Backbone(config)
        self.neck = Neck(config)
        self.head = DetectHead(config, classes, anchors)
        self.tasks = nn.ModuleDict({task: head(config, counts) for task, head in HEADS.items() if task in config.tasks})
        # Last of all, so that networks that differ in implicit knowledge alone start from the same explicit weights.
        self.head.add_implicit(config.implicit)
        for level in (module for module in self.tasks.modules() if isinstance(module, PredictionLevel)):
            level.add_implicit(config.implicit)

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> dict[str, list[Tensor]]:
        """Return what each task's head says of images in 0..1, raw: `detect` has levels (B, A, rows, columns, F)."""
        features = self.neck(self.backbone(x))
        return {"detect": self.head(features), **{task: head(features) for task, head in self.tasks.items()}}

    def decode(self, raw: dict[str, list[Tensor]]) -> dict[str, Tensor]:
        """Return `boxes_xyxy` (B, P, 4) in pixels, `scores` (B, P, K), and the other tasks' outputs by name, in float32."""
        boxes_cxcywh, scores = self.head.decode(raw["detect"])
        outputs = {"boxes_xyxy": xyxy_from_cxcywh(boxes_cxcywh), "scores": scores}
        for task, head in self.tasks.items():
            outputs |= head.decode(raw[task], self.head)  # type: ignore[operator]
        return outputs

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.head.classes

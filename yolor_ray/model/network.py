"""The YOLOR network: stem -> backbone stages -> SPP -> pyramid neck (down, then up) -> one head per task.

Legend: B images, C channels, H W cells of a level, L levels, A predictions per cell, K classes, F numbers per prediction: 5 + K with
anchors, 4 + K without, P predictions (A · H · W summed over the levels).
"""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from yolor_ray.boxes import xyxy_from_cxcywh
from yolor_ray.config import NetworkConfig
from yolor_ray.model.heads.detect import DetectHead
from yolor_ray.model.heads.detection_head import DetectionHead
from yolor_ray.model.heads.free import FreeHead
from yolor_ray.model.heads.prediction_level import OutputCounts, PredictionLevel
from yolor_ray.model.heads.registry import HEADS
from yolor_ray.model.layers import Bottleneck, Conv, CspBlock, DownC, NeckBlock, ReOrg, SppCsp, Wavelet, conv_settings
from yolor_ray.model.recompute import run_block


def _make_down(config: NetworkConfig, c_in: int, c_out: int) -> nn.Module:
    if config.down == "downc":
        return DownC(c_in, c_out, settings=conv_settings(config))
    return Conv(c_in, c_out, 3, 2, settings=conv_settings(config))


def _make_stem(config: NetworkConfig) -> tuple[nn.Sequential, int]:
    """Return the stem and its output channels.

    Stems with a convolution end at stride 2. The stems `s2d` and `dwt` have no convolution and end at stride 8.
    """
    settings, width, first = conv_settings(config), config.stem_width, config.widths[0]
    if config.stem == "reorg":
        return nn.Sequential(ReOrg(), Conv(12, width, 3, settings=settings)), width
    if config.stem in ("s2d", "dwt"):
        layer = ReOrg if config.stem == "s2d" else Wavelet
        return nn.Sequential(layer(), layer(), layer()), 3 * 4**3
    start = Conv(3, width, 3, settings=settings), Conv(width, first, 3, 2, settings=settings)
    if config.stem == "csp":
        return nn.Sequential(*start, _make_block(config, first, first, config.depths[0])), first
    residuals = (Bottleneck(first, first // 2, shortcut=True, settings=settings) for _ in range(config.depths[0]))
    return nn.Sequential(*start, *residuals), first


def _make_block(config: NetworkConfig, c_in: int, width: int, depth: int) -> CspBlock:
    settings = conv_settings(config)
    return CspBlock(c_in, width, depth, fusion_first=config.block == "cspf", joint_norm=config.joint_norm, settings=settings)


class Backbone(nn.Module):
    """Stem and stages: an image becomes one feature map per prediction level, stride 8 first."""

    recompute = False
    """Recompute the activations of stem and stages in the backward pass."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.stem, c_in = _make_stem(config)
        first = 1 if config.stem in ("conv", "csp") else 0
        stages: list[nn.Sequential] = []
        for width, depth in zip(config.widths[first:], config.depths[first:], strict=True):
            # A stem without a convolution has the stride of the first stage already.
            stem_has_stride = not stages and config.stem in ("s2d", "dwt")
            down = nn.Identity() if stem_has_stride else _make_down(config, c_in, width)
            stages.append(nn.Sequential(down, _make_block(config, c_in if stem_has_stride else width, width, depth)))
            c_in = width
        self.stages = nn.ModuleList(stages)
        self.levels = config.levels

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """Return L feature maps (B, C, H/stride, W/stride) of an image of H x W pixels, at strides 8, 16, …."""
        x = run_block(self.stem, x, recompute=self.recompute)
        features = []
        for stage in self.stages:
            x = run_block(stage, x, recompute=self.recompute)
            features.append(x)
        return features[-self.levels :]


class Neck(nn.Module):
    """Feature pyramid: coarse features go down to the fine levels (FPN), then back up (PAN), at half the backbone's widths."""

    recompute = False
    """Recompute the activations of the blocks in the backward pass."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        settings = conv_settings(config)
        backbone = config.widths[-config.levels :]
        widths = [w // 2 for w in backbone]

        def make_block(width: int) -> NeckBlock:
            return NeckBlock(2 * width, width, config.neck_depth, joint_norm=config.joint_norm, settings=settings)

        self.spp = SppCsp(backbone[-1], widths[-1], config.spp_pairs, joint_norm=config.joint_norm, settings=settings)
        self.reduce = nn.ModuleList(Conv(coarse, fine, settings=settings) for fine, coarse in itertools.pairwise(widths))
        self.lateral = nn.ModuleList(Conv(full, half, settings=settings) for full, half in zip(backbone[:-1], widths[:-1], strict=True))
        self.top_down = nn.ModuleList(make_block(w) for w in widths[:-1])
        self.down = nn.ModuleList(_make_down(config, fine, coarse) for fine, coarse in itertools.pairwise(widths))
        self.bottom_up = nn.ModuleList(make_block(w) for w in widths[1:])

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Return L feature maps (B, C/2, H, W) from the L backbone maps (B, C, H, W), fine level first."""
        x = run_block(self.spp, features[-1], recompute=self.recompute)
        pyramid = [x]
        for level in reversed(range(len(self.reduce))):
            upper = nn.functional.interpolate(self.reduce[level](x), scale_factor=2.0, mode="nearest")
            merged = torch.cat((self.lateral[level](features[level]), upper), dim=1)
            x = run_block(self.top_down[level], merged, recompute=self.recompute)
            pyramid.insert(0, x)
        outputs = [x]
        for level, (down, block) in enumerate(zip(self.down, self.bottom_up, strict=True)):
            x = run_block(block, torch.cat((down(x), pyramid[level + 1]), dim=1), recompute=self.recompute)
            outputs.append(x)
        return outputs


class Yolor(nn.Module):
    """Unified network (paper equation 5): shared explicit features, and task-specific implicit knowledge on every level."""

    def __init__(
        self,
        config: NetworkConfig,
        classes: int,
        anchors: Float[Tensor, "L A 2"] | None = None,
        *,
        image_classes: int = 0,
        keypoints: int = 0,
        identities: Sequence[int] = (),
    ) -> None:
        """Build the network of a configuration with fresh weights.

        Args:
            config: the family member, its tasks and its implicit knowledge.
            classes: object classes of the dataset, K.
            anchors: anchor widths and heights in pixels, fine level first; required by the head `anchors`, unused by others.
            image_classes: labels of whole images (task classify).
            keypoints: keypoints per object (task pose).
            identities: individuals of each dataset of the training set (task embed).
        """
        super().__init__()
        self.config = config
        self.counts = counts = OutputCounts(classes, image_classes, keypoints, tuple(identities))
        self.backbone = Backbone(config)
        self.neck = Neck(config)
        self.head: DetectionHead = FreeHead(config, classes) if config.head == "free" else DetectHead(config, classes, anchors)
        self.tasks = nn.ModuleDict({task: head(config, counts) for task, head in HEADS.items() if task in config.tasks})
        # Implicit knowledge is drawn last, so networks that differ in it alone start from the same explicit weights.
        implicit = config.implicit.by_task
        self.head.add_implicit(implicit["detect"])
        for task, head in self.tasks.items():
            for level in (module for module in head.modules() if isinstance(module, PredictionLevel)):
                level.add_implicit(implicit[task])

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> dict[str, list[Tensor]]:
        """Return the raw outputs of each task for images in 0..1; `detect` has one tensor (B, A, H, W, F) per level."""
        features = self.neck(self.backbone(x))
        return {"detect": self.head(features), **{task: head(features) for task, head in self.tasks.items()}}

    def decode(self, raw: dict[str, list[Tensor]]) -> dict[str, Tensor]:
        """Return the decoded outputs by name, in float32.

        Always `boxes_xyxy` (B, P, 4) in pixels and `scores` (B, P, K) in 0..1; other tasks add the outputs of their heads.
        """
        boxes_cxcywh, scores = self.head.decode(raw["detect"])
        outputs = {"boxes_xyxy": xyxy_from_cxcywh(boxes_cxcywh), "scores": scores}
        for task, head in self.tasks.items():
            outputs |= head.decode(raw[task], self.head)  # type: ignore[operator]
        return outputs

    @property
    def classes(self) -> int:
        """Number of object classes, K."""
        return self.head.classes

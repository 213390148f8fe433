"""Predict on one map of the pyramid, with implicit knowledge around the prediction convolution; the heads of all tasks are made of this.

Legend: B images, C channels, H W cells of a level, A anchors per cell, F numbers per anchor.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from yolor_ray.config import ImplicitConfig, NetworkConfig
from yolor_ray.model.implicit import Implicit
from yolor_ray.model.layers import NORM_MOMENTUM, Conv, conv_settings

MIN_WIDTH = 64
"""Fewest channels of a task's 3x3 convolution: narrow pyramids need more room for the many numbers of a task."""


@dataclass(frozen=True)
class OutputCounts:
    """Say how many of each the data names."""

    classes: int
    image_classes: int = 0
    """Labels of whole images."""
    keypoints: int = 0
    """Keypoints of each object."""
    identities: int = 0
    """Individuals to tell apart while training."""


class PredictionLevel(nn.Module):
    """Predict on one map: 3x3 -> feature alignment -> 1x1 -> prediction refinement, as the published networks do.

    Implicit knowledge may also stand before the 3x3 (`pyramid`), or nowhere: then its place is an identity.
    """

    def __init__(
        self, c_in: int, width: int, outputs: int, config: NetworkConfig, *, anchors: int = 1, pooled: bool = False, normed: bool = False
    ) -> None:
        """Take the number of outputs, and among how many anchors they are divided.

        `pooled` predicts once for the whole map; `normed` takes out, by batch norm, what all predictions have in common.
        """
        super().__init__()
        self._groups = anchors if config.implicit.align_per == "anchor" else 1
        self._c_in, self._width, self._pooled = c_in, width, pooled
        self.pyramid: nn.Module = nn.Identity()
        self.conv = Conv(c_in, width, 3, style=conv_settings(config))
        self.align: nn.Module = nn.Identity()
        self.predict = nn.Conv2d(width * self._groups, outputs, 1, groups=self._groups)
        self.norm: nn.Module = nn.BatchNorm2d(outputs, eps=config.norm_eps, momentum=NORM_MOMENTUM) if normed else nn.Identity()
        self.refine: nn.Module = nn.Identity()

    def add_implicit(self, implicit: ImplicitConfig, only: Sequence[int] | None = None) -> None:
        """Put fresh implicit knowledge in its places; `only` names the outputs that are refined."""
        if implicit.align != "none":
            on_pyramid = implicit.align_at == "pyramid"
            channels = self._c_in if on_pyramid else self._width
            align = Implicit(implicit.align, channels, model=implicit.align_by, std=implicit.std, groups=self._groups)
            self.pyramid, self.align = (align, self.align) if on_pyramid else (self.pyramid, align)
        if implicit.align == "concat" and on_pyramid:
            self.conv.conv = _seeing_prior(self.conv.conv)
        elif implicit.align == "concat":
            self.predict = _seeing_prior(self.predict)
        if implicit.refine != "none":
            outputs = self.predict.out_channels
            self.refine = Implicit(implicit.refine, outputs, model=implicit.refine_by, std=implicit.std, only=only)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B _ _ _"]:
        """Return raw outputs, anchor-major; for the whole map on a single cell if pooled."""
        x = self.conv(self.pyramid(x))
        if self._pooled:
            # The mean alone would drown what is small in the picture, the maximum alone sees one cell.
            x = (x.mean(dim=(2, 3), keepdim=True) + x.amax(dim=(2, 3), keepdim=True)) / 2
        return self.refine(self.norm(self.predict(self.align(x))))


@torch.no_grad()
def _seeing_prior(conv: nn.Module) -> nn.Conv2d:
    """Return the convolution with as many inputs again, a prior's, before those of each group; what it has drawn stays as it is."""
    assert isinstance(conv, nn.Conv2d)
    sides = conv.kernel_size[0], conv.stride[0], conv.padding[0]
    wider = nn.Conv2d(2 * conv.in_channels, conv.out_channels, *sides, groups=conv.groups, bias=conv.bias is not None)  # type: ignore[arg-type]
    wider.weight[:, conv.weight.shape[1] :] = conv.weight
    if conv.bias is not None and wider.bias is not None:
        wider.bias.copy_(conv.bias)
    return wider


def channels_of(config: NetworkConfig) -> list[int]:
    """Return the channels of the neck's map of each level, fine first."""
    return [width // 2 for width in config.widths[-config.levels :]]


def anchor_levels(config: NetworkConfig, numbers: int, *, normed: bool = False) -> nn.ModuleList:
    """Return a prediction level for each map of the neck, with so many numbers for each anchor."""
    anchors = config.anchors_per_level
    return nn.ModuleList(
        PredictionLevel(c, max(c, MIN_WIDTH), anchors * numbers, config, anchors=anchors, normed=normed) for c in channels_of(config)
    )


def predict_levels(levels: nn.ModuleList, features: list[Tensor], anchors: int) -> list[Float[Tensor, "B A _ _ F"]]:
    """Return the raw numbers of each level, those of each anchor last."""
    return [by_anchor(level(x), anchors) for level, x in zip(levels, features, strict=True)]


def by_anchor(y: Float[Tensor, "B _ H W"], anchors: int) -> Float[Tensor, "B A H W F"]:
    """Return a level's outputs with the numbers of each anchor last."""
    b, _, h, w = y.shape
    return y.view(b, anchors, -1, h, w).permute(0, 1, 3, 4, 2)


def cells_of(level: Float[Tensor, "B A H W F"]) -> Float[Tensor, "H W 2"]:
    """Return x and y of each cell of a level, in cells."""
    h, w = level.shape[2:4]
    rows, columns = torch.meshgrid(torch.arange(h, device=level.device), torch.arange(w, device=level.device), indexing="ij")
    return torch.stack((columns, rows), dim=-1).float()


def over_levels(levels: Sequence[Float[Tensor, "B A _ _ *F"]]) -> Float[Tensor, "B P *F"]:
    """Return the predictions of all levels one after another, in the order of the boxes."""
    return torch.cat([level.flatten(1, 3) for level in levels], dim=1)

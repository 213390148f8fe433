"""Prediction level: the building block of all heads, with implicit knowledge around the prediction convolution.

Legend: B images, C channels, H W cells of a level, A anchors per cell, F numbers per anchor, P predictions (A · H · W summed
over the levels).
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
"""Minimum channels of a task's 3x3 convolution: narrow pyramids have too few for the many numbers of a task."""


@dataclass(frozen=True)
class OutputCounts:
    """Numbers of classes, labels, keypoints and identities in the dataset."""

    classes: int
    image_classes: int = 0
    """Labels of whole images."""
    keypoints: int = 0
    """Keypoints per object."""
    identities: int = 0
    """Individuals of the training set."""


class PredictionLevel(nn.Module):
    """Prediction on one feature map: 3x3 -> feature alignment (FA) -> 1x1 -> prediction refinement (PR), as in the YOLOR networks.

    Implicit knowledge may stand before the 3x3 (`pyramid`), before the 1x1 (`align`) and after the 1x1 (`refine`). A place without
    implicit knowledge holds an identity.
    """

    def __init__(
        self, c_in: int, width: int, outputs: int, config: NetworkConfig, *, anchors: int = 1, pooled: bool = False, normed: bool = False
    ) -> None:
        """Build a level without implicit knowledge.

        Args:
            c_in: channels of the feature map.
            width: channels of the 3x3 convolution.
            outputs: numbers per cell, of all anchors together.
            config: the network's configuration.
            anchors: anchors that share the outputs.
            pooled: predict once for the whole map instead of per cell.
            normed: remove the component common to all predictions by batch norm.
        """
        super().__init__()
        self._groups = anchors if config.implicit.align_per == "anchor" else 1
        self._c_in, self._width, self._pooled = c_in, width, pooled
        self.pyramid: nn.Module = nn.Identity()
        self.conv = Conv(c_in, width, 3, settings=conv_settings(config))
        self.align: nn.Module = nn.Identity()
        self.predict = nn.Conv2d(width * self._groups, outputs, 1, groups=self._groups)
        self.norm: nn.Module = nn.BatchNorm2d(outputs, eps=config.norm_eps, momentum=NORM_MOMENTUM) if normed else nn.Identity()
        self.refine: nn.Module = nn.Identity()

    def add_implicit(self, implicit: ImplicitConfig, refined_outputs: Sequence[int] | None = None) -> None:
        """Add fresh implicit knowledge; `refined_outputs` are the positions of the outputs to refine, None for all."""
        if implicit.align != "none":
            on_pyramid = implicit.align_at == "pyramid"
            channels = self._c_in if on_pyramid else self._width
            align = Implicit(implicit.align, channels, model=implicit.align_by, std=implicit.std, groups=self._groups)
            self.pyramid, self.align = (align, self.align) if on_pyramid else (self.pyramid, align)
        if implicit.align == "concat" and on_pyramid:
            self.conv.conv = _widen_for_prior(self.conv.conv)
        elif implicit.align == "concat":
            self.predict = _widen_for_prior(self.predict)
        if implicit.refine != "none":
            outputs = self.predict.out_channels
            self.refine = Implicit(implicit.refine, outputs, model=implicit.refine_by, std=implicit.std, channel_indices=refined_outputs)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B _ _ _"]:
        """Return the raw outputs, anchor-major: (B, A·F, H, W), or (B, A·F, 1, 1) if pooled."""
        x = self.conv(self.pyramid(x))
        if self._pooled:
            # The mean alone hides small objects, the maximum alone sees a single cell.
            x = (x.mean(dim=(2, 3), keepdim=True) + x.amax(dim=(2, 3), keepdim=True)) / 2
        return self.refine(self.norm(self.predict(self.align(x))))


@torch.no_grad()
def _widen_for_prior(conv: nn.Module) -> nn.Conv2d:
    """Return the convolution with twice the inputs: in each group a prior, then the features with the weights of `conv`."""
    assert isinstance(conv, nn.Conv2d) and isinstance(conv.padding, tuple)
    kernel, stride, padding, has_bias = conv.kernel_size[0], conv.stride[0], conv.padding[0], conv.bias is not None
    wider = nn.Conv2d(2 * conv.in_channels, conv.out_channels, kernel, stride, padding, groups=conv.groups, bias=has_bias)
    wider.weight[:, conv.weight.shape[1] :] = conv.weight
    if conv.bias is not None and wider.bias is not None:
        wider.bias.copy_(conv.bias)
    return wider


def neck_channels(config: NetworkConfig) -> list[int]:
    """Return the channels of the neck's feature map of each level, fine level first."""
    return [width // 2 for width in config.widths[-config.levels :]]


def make_anchor_levels(config: NetworkConfig, numbers: int, *, normed: bool = False) -> nn.ModuleList:
    """Return one prediction level per feature map of the neck, with `numbers` outputs per anchor."""
    anchors = config.predictions_per_cell
    return nn.ModuleList(
        PredictionLevel(c, max(c, MIN_WIDTH), anchors * numbers, config, anchors=anchors, normed=normed) for c in neck_channels(config)
    )


def predict_levels(levels: nn.ModuleList, features: list[Tensor], anchors: int) -> list[Float[Tensor, "B A _ _ F"]]:
    """Return the raw outputs of each level, (B, A, H, W, F), from the feature maps (B, C, H, W)."""
    return [split_anchors(level(x), anchors) for level, x in zip(levels, features, strict=True)]


def split_anchors(y: Float[Tensor, "B _ H W"], anchors: int) -> Float[Tensor, "B A H W F"]:
    """Split anchor-major outputs (B, A·F, H, W) by anchor, with the F numbers of an anchor last."""
    b, _, h, w = y.shape
    return y.view(b, anchors, -1, h, w).permute(0, 1, 3, 4, 2)


def cell_coordinates(level: Float[Tensor, "B A H W F"]) -> Float[Tensor, "H W 2"]:
    """Return x (column) and y (row) of each cell of a level, in cells, as float32."""
    h, w = level.shape[2:4]
    rows, columns = torch.meshgrid(torch.arange(h, device=level.device), torch.arange(w, device=level.device), indexing="ij")
    return torch.stack((columns, rows), dim=-1).float()


def concatenate_levels(levels: Sequence[Float[Tensor, "B A _ _ *F"]]) -> Float[Tensor, "B P *F"]:
    """Concatenate the predictions of all levels, level-major, then by anchor, row and column."""
    return torch.cat([level.flatten(1, 3) for level in levels], dim=1)

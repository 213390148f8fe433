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
from yolor_ray.model.implicit import Implicit, Projection, principal_directions, project_weight
from yolor_ray.model.layers import BatchNorm, Conv, conv_settings

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
    identities: tuple[int, ...] = ()
    """Individuals of each dataset of the training set."""


class PredictionLevel(nn.Module):
    """Prediction on one feature map: 3x3 -> feature alignment (FA) -> 1x1 -> prediction refinement (PR), as in the YOLOR networks.

    Implicit knowledge may stand before the 3x3 (`pyramid`), before the 1x1 (`align`) and after the 1x1 (`refine`). A place without
    implicit knowledge holds an identity. No batch norm follows the 1x1: in training a batch norm takes out every constant before it.
    """

    def __init__(
        self, c_in: int, width: int, outputs: int, config: NetworkConfig, *, anchors: int = 1, pooled: bool = False, centred: bool = False
    ) -> None:
        """Build a level without implicit knowledge.

        Args:
            c_in: channels of the feature map.
            width: channels of the 3x3 convolution.
            outputs: numbers per cell, of all anchors together.
            config: the network's configuration.
            anchors: anchors that share the outputs.
            pooled: predict once for the whole map instead of per cell.
            centred: remove the component common to all features of the 3x3 by batch norm, before feature alignment.
        """
        super().__init__()
        self._groups = anchors if config.implicit.align_per == "anchor" else 1
        self._c_in, self._width, self._pooled = c_in, width, pooled
        self.pyramid: nn.Module = nn.Identity()
        self.conv = Conv(c_in, width, 3, settings=conv_settings(config))
        self.centre: nn.Module = BatchNorm(width, config.norm_eps) if centred else nn.Identity()
        self.align: nn.Module = nn.Identity()
        self.predict = nn.Conv2d(width * self._groups, outputs, 1, groups=self._groups)
        self.refine: nn.Module = nn.Identity()

    def add_implicit(
        self, implicit: ImplicitConfig, refined_outputs: Sequence[int] | None = None, added_outputs: Sequence[int] = ()
    ) -> None:
        """Add fresh implicit knowledge.

        Args:
            implicit: forms of the implicit knowledge.
            refined_outputs: positions of the outputs to refine, None for all.
            added_outputs: positions of the outputs that the refinement `add_multiply` adds to.
        """
        if implicit.align != "none" and implicit.align_at == "pyramid":
            assert isinstance(self.conv.conv, nn.Conv2d)
            self.pyramid, self.conv.conv = self._make_alignment(implicit, self._c_in, self.conv.conv)
        elif implicit.align != "none":
            self.align, self.predict = self._make_alignment(implicit, self._width, self.predict)
        if implicit.refine != "none":
            self.refine = Implicit(
                implicit.refine,
                self.predict.out_channels,
                model=implicit.refine_by,
                std=implicit.std,
                channel_indices=refined_outputs,
                added_channels=added_outputs,
            )

    def _make_alignment(self, implicit: ImplicitConfig, channels: int, conv: nn.Conv2d) -> tuple[nn.Module, nn.Conv2d]:
        """Return an alignment of features with `channels` channels, and the convolution behind it with inputs for the aligned features."""
        assert implicit.align != "none"
        if implicit.align == "project":
            projection = Projection(principal_directions(conv.weight, channels // 2))
            return projection, _narrow_for_projection(conv, projection)
        align = Implicit(implicit.align, channels, model=implicit.align_by, std=implicit.std, groups=self._groups)
        return align, _widen_for_prior(conv) if implicit.align == "concat" else conv

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B _ _ _"]:
        """Return the raw outputs, anchor-major: (B, A·F, H, W), or (B, A·F, 1, 1) if pooled."""
        x = self.conv(self.pyramid(x))
        if self._pooled:
            # The mean alone hides small objects, the maximum alone sees a single cell.
            x = (x.mean(dim=(2, 3), keepdim=True) + x.amax(dim=(2, 3), keepdim=True)) / 2
        return self.refine(self.predict(self.align(self.centre(x))))


def _with_inputs(conv: nn.Conv2d, inputs: int) -> nn.Conv2d:
    """Return a convolution with another number of input channels, fresh weights and the biases of `conv`."""
    assert isinstance(conv.padding, tuple)
    kernel, stride, padding, has_bias = conv.kernel_size[0], conv.stride[0], conv.padding[0], conv.bias is not None
    other = nn.Conv2d(inputs, conv.out_channels, kernel, stride, padding, groups=conv.groups, bias=has_bias)
    if conv.bias is not None and other.bias is not None:
        other.bias.copy_(conv.bias)
    return other


@torch.no_grad()
def _widen_for_prior(conv: nn.Conv2d) -> nn.Conv2d:
    """Return the convolution with twice the inputs: in each group a prior, then the features with the weights of `conv`."""
    wider = _with_inputs(conv, 2 * conv.in_channels)
    wider.weight[:, conv.weight.shape[1] :] = conv.weight
    return wider


@torch.no_grad()
def _narrow_for_projection(conv: nn.Conv2d, projection: Projection) -> nn.Conv2d:
    """Return the convolution with the projected features as inputs."""
    narrower = _with_inputs(conv, len(projection.z))
    narrower.weight.copy_(project_weight(conv.weight, projection.z))
    return narrower


def neck_channels(config: NetworkConfig) -> list[int]:
    """Return the channels of the neck's feature map of each level, fine level first."""
    return [width // 2 for width in config.widths[-config.levels :]]


def make_anchor_levels(config: NetworkConfig, numbers: int, *, centred: bool = False) -> nn.ModuleList:
    """Return one prediction level per feature map of the neck, with `numbers` outputs per anchor."""
    anchors = config.predictions_per_cell
    return nn.ModuleList(
        PredictionLevel(c, max(c, MIN_WIDTH), anchors * numbers, config, anchors=anchors, centred=centred) for c in neck_channels(config)
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

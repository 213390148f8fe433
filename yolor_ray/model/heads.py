"""Predict boxes, objectness and classes per cell and anchor, with implicit knowledge around the prediction convolution.

Legend: B images, H W cells of a level, A anchors per cell, K classes, F = 5 + K numbers per anchor, L levels, P predictions.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from yolor_ray.config import Implicit as ImplicitConfig
from yolor_ray.config import Network as NetworkConfig
from yolor_ray.model.implicit import Implicit
from yolor_ray.model.layers import Conv, style_of

OBJECTS_PER_IMAGE_PRIOR = 8
"""Objects that a 640 px image is expected to hold before anything is learned."""
SIZE_OUTPUTS = (2, 3)
"""Where width and height stand among an anchor's outputs x, y, w, h, objectness, classes."""


class DetectLevel(nn.Module):
    """Predict one level: 3x3 -> feature alignment -> 1x1 -> prediction refinement, as the published networks do.

    Implicit knowledge may also stand before the 3x3 (`pyramid`), or nowhere: then its place is an identity.
    """

    def __init__(self, c_in: int, width: int, classes: int, config: NetworkConfig) -> None:
        super().__init__()
        anchors = config.anchors_per_level
        groups = anchors if config.implicit.align_per == "anchor" else 1
        self._c_in, self._width = c_in, width
        self.pyramid: nn.Module = nn.Identity()
        self.conv = Conv(c_in, width, 3, style=style_of(config))
        self.align: nn.Module = nn.Identity()
        self.predict = nn.Conv2d(width * groups, anchors * (5 + classes), 1, groups=groups)
        self.refine: nn.Module = nn.Identity()

    def know(self, implicit: ImplicitConfig, anchors: int) -> None:
        """Put fresh implicit knowledge in its places."""
        if implicit.align != "none":
            on_pyramid = implicit.align_at == "pyramid"
            channels = self._c_in if on_pyramid else self._width
            groups = anchors if implicit.align_per == "anchor" else 1
            align = Implicit(implicit.align, channels, model=implicit.align_by, std=implicit.std, groups=groups)
            self.pyramid, self.align = (align, self.align) if on_pyramid else (self.pyramid, align)
        if implicit.align == "concat" and on_pyramid:
            self.conv.conv = _seeing_prior(self.conv.conv)
        elif implicit.align == "concat":
            self.predict = _seeing_prior(self.predict)
        if implicit.refine != "none":
            outputs = self.predict.out_channels
            per_anchor = outputs // anchors
            sizes = [anchor * per_anchor + side for anchor in range(anchors) for side in SIZE_OUTPUTS]
            only = sizes if implicit.refine_what == "size" else None
            self.refine = Implicit(implicit.refine, outputs, model=implicit.refine_by, std=implicit.std, only=only)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B _ H W"]:
        """Return raw outputs, anchor-major."""
        return self.refine(self.predict(self.align(self.conv(self.pyramid(x)))))


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


class DetectHead(nn.Module):
    """Hold a prediction level for each map of the neck, and the anchors in pixels."""

    anchors: Tensor

    def __init__(self, config: NetworkConfig, classes: int, anchors: Float[Tensor, "L A 2"]) -> None:
        super().__init__()
        if anchors.shape != (config.levels, config.anchors_per_level, 2):
            raise ValueError(f"anchors: found shape {tuple(anchors.shape)}, expected {(config.levels, config.anchors_per_level, 2)}")
        self.classes = classes
        self.strides = config.strides
        widths = config.widths[-config.levels :]
        levels = [DetectLevel(w // 2, w, classes, config) for w in widths]
        self.levels = nn.ModuleList(levels)
        self.register_buffer("anchors", anchors.float())
        for level, stride in zip(levels, self.strides, strict=True):
            self._set_prior(level.predict, stride)
        # Last of all, so that networks that differ in implicit knowledge alone start from the same explicit weights.
        for level in levels:
            level.know(config.implicit, config.anchors_per_level)

    @torch.no_grad()
    def _set_prior(self, predict: nn.Conv2d, stride: int) -> None:
        """Start from rare objects and even classes, so that the first steps are not spent on the background."""
        assert predict.bias is not None
        bias = predict.bias.view(self.anchors.shape[1], -1)
        bias[:, 4] += math.log(OBJECTS_PER_IMAGE_PRIOR / (640 / stride) ** 2)
        if self.classes > 1:
            bias[:, 5:] += math.log(0.6 / (self.classes - 0.99))

    def forward(self, features: list[Tensor]) -> list[Float[Tensor, "B A _ _ F"]]:
        """Return raw predictions per level."""
        raw = []
        for level, x in zip(self.levels, features, strict=True):
            y = level(x)
            b, _, h, w = y.shape
            raw.append(y.view(b, self.anchors.shape[1], -1, h, w).permute(0, 1, 3, 4, 2))
        return raw

    def decode(self, raw: list[Float[Tensor, "B A _ _ F"]]) -> tuple[Float[Tensor, "B P 4"], Float[Tensor, "B P K"]]:
        """Turn raw predictions into boxes_cxcywh in pixels and scores 0..1, in float32 whatever the input.

        Centres reach half a cell beyond their own, sizes up to four anchors. A score is objectness times class
        probability; with a single class, objectness alone.
        """
        boxes, scores = [], []
        for level, stride, anchors in zip(raw, self.strides, self.anchors, strict=True):
            y = level.float().sigmoid()
            b, a, h, w, _ = y.shape
            rows, columns = torch.meshgrid(torch.arange(h, device=y.device), torch.arange(w, device=y.device), indexing="ij")
            cells = torch.stack((columns, rows), dim=-1).to(y.dtype)
            centre = (2 * y[..., :2] - 0.5 + cells) * stride
            size = (2 * y[..., 2:4]) ** 2 * anchors.view(1, a, 1, 1, 2)
            score = y[..., 4:5] * y[..., 5:] if self.classes > 1 else y[..., 4:5]
            boxes.append(torch.cat((centre, size), dim=-1).reshape(b, -1, 4))
            scores.append(score.reshape(b, -1, self.classes))
        return torch.cat(boxes, dim=1), torch.cat(scores, dim=1)

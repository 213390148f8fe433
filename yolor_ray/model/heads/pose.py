"""Pose head: the keypoints of each object, relative to the anchor.

Legend: B images, C channels, H W cells of a level, A anchors per cell, P predictions, J keypoints.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from yolor_ray.config import NetworkConfig
from yolor_ray.model.heads.detection_head import DetectionHead
from yolor_ray.model.heads.prediction_level import (
    OutputCounts,
    cell_coordinates,
    concatenate_levels,
    make_anchor_levels,
    predict_levels,
)


class PoseHead(nn.Module):
    """x, y and visibility of each keypoint, per anchor."""

    def __init__(self, config: NetworkConfig, counts: OutputCounts) -> None:
        super().__init__()
        self._anchors = config.predictions_per_cell
        self.levels = make_anchor_levels(config, 3 * counts.keypoints)

    def forward(self, features: list[Tensor]) -> list[Float[Tensor, "B A _ _ _"]]:
        """Return x, y and visibility logit of each keypoint in turn, (B, A, H, W, 3J) per level, from the feature maps (B, C, H, W)."""
        return predict_levels(self.levels, features, self._anchors)

    def decode(self, raw: list[Tensor], detect_head: DetectionHead) -> dict[str, Tensor]:
        """Return `keypoints`, (B, P, J, 3): x and y in pixels of the network input, and the probability of being visible."""
        levels = []
        for level, stride, anchors in zip(raw, detect_head.strides, detect_head.anchors, strict=True):
            y = level.float().unflatten(-1, (-1, 3))
            points = decode_keypoints(y[..., :2], cell_coordinates(level)[None, None], anchors.view(1, -1, 1, 1, 2), stride)
            levels.append(torch.cat((points, y[..., 2:].sigmoid()), dim=-1))
        return {"keypoints": concatenate_levels(levels)}


def decode_keypoints(
    offsets: Float[Tensor, "... J 2"], cells: Float[Tensor, "... 2"], anchors: Float[Tensor, "... 2"], stride: int | Tensor
) -> Float[Tensor, "... J 2"]:
    """Return keypoints in pixels of the network input; all dimensions except J are broadcast.

    Args:
        offsets: offsets from the centre of the cell, in anchor sides.
        cells: column and row of the cell.
        anchors: anchor width and height in pixels.
        stride: pixels per cell.
    """
    return (cells.unsqueeze(-2) + 0.5) * stride + offsets * anchors.unsqueeze(-2)

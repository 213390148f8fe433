"""Find the keypoints of each object, relative to its anchor.

Legend: B images, H W cells of a level, A anchors per cell, P predictions, J keypoints.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from yolor_ray.config import NetworkConfig
from yolor_ray.model.heads.detect import DetectHead
from yolor_ray.model.heads.prediction_level import OutputCounts, anchor_levels, cells_of, over_levels, predict_levels


class PoseHead(nn.Module):
    """Predict x, y and visibility of each keypoint per anchor."""

    def __init__(self, config: NetworkConfig, counts: OutputCounts) -> None:
        super().__init__()
        self._anchors = config.anchors_per_level
        self.levels = anchor_levels(config, 3 * counts.keypoints)

    def forward(self, features: list[Tensor]) -> list[Float[Tensor, "B A _ _ _"]]:
        """Return x, y and the logit of visibility of each keypoint in turn, per level."""
        return predict_levels(self.levels, features, self._anchors)

    def decode(self, raw: list[Tensor], detect: DetectHead) -> dict[str, Tensor]:
        """Return `keypoints`, (B, P, J, 3): x and y in pixels of the network input, and the probability that it is there to be seen."""
        levels = []
        for level, stride, anchors in zip(raw, detect.strides, detect.anchors, strict=True):
            y = level.float().unflatten(-1, (-1, 3))
            points = place_points(y[..., :2], cells_of(level)[None, None], anchors.view(1, -1, 1, 1, 2), stride)
            levels.append(torch.cat((points, y[..., 2:].sigmoid()), dim=-1))
        return {"keypoints": over_levels(levels)}


def place_points(
    offsets: Float[Tensor, "... J 2"], cells: Float[Tensor, "... 2"], anchors: Float[Tensor, "... 2"], stride: int | Tensor
) -> Float[Tensor, "... J 2"]:
    """Return keypoints in pixels: offsets from the middle of the cell, in sides of the anchor; all but the joints are broadcast."""
    return (cells.unsqueeze(-2) + 0.5) * stride + offsets * anchors.unsqueeze(-2)

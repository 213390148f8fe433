"""Interface of the detection heads, which the heads of other tasks and the losses share.

Legend: B images, C channels, H W cells of a level, L levels, A predictions per cell, K classes, F numbers per prediction, P predictions.
"""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn

from yolor_ray.config import ImplicitConfig


class DetectionHead(nn.Module, ABC):
    """Boxes and classes of every cell of every level."""

    classes: int
    """Number of object classes, K."""
    strides: tuple[int, ...]
    """Pixels per cell of each level."""
    anchors: Tensor
    """(L, A, 2) pixels: the unit of the other tasks' offsets, and of boxes where the head has anchors."""

    @property
    @abstractmethod
    def branches(self) -> tuple[nn.ModuleList, ...]:
        """Prediction levels of each branch, in the order of a prediction's outputs."""

    @abstractmethod
    def add_implicit(self, implicit: ImplicitConfig) -> None:
        """Add fresh implicit knowledge to every level of every branch."""

    @abstractmethod
    def forward(self, features: list[Tensor]) -> list[Float[Tensor, "B A _ _ F"]]:
        """Return the raw outputs of each level, (B, A, H, W, F), from the feature maps (B, C, H, W)."""

    @abstractmethod
    def decode(self, raw: list[Float[Tensor, "B A _ _ F"]]) -> tuple[Float[Tensor, "B P 4"], Float[Tensor, "B P K"]]:
        """Return boxes_cxcywh in pixels and scores in 0..1, in float32 for any input dtype."""

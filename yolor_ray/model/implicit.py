"""Hold implicit knowledge: learned constants that shift or scale features without looking at the image.

YOLOR sections 3 and 4.3: addition aligns the kernel spaces of the pyramid's levels, multiplication refines predictions.
Legend: B images, C channels, H W cells.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

PRIOR_STD = 0.02
"""Standard deviation of a fresh prior: small, so that it has no effect at the start (section 4.3)."""


class ImplicitAdd(nn.Module):
    """Shift each channel by a learned prior z ~ N(0, 0.02) (equations 3 and 6 with +)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.randn(channels) * PRIOR_STD)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Return x + z."""
        return x + self.z.view(1, -1, 1, 1)


class ImplicitMultiply(nn.Module):
    """Scale each channel by a learned prior z ~ N(1, 0.02) (equations 3 and 6 with x)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.z = nn.Parameter(1 + torch.randn(channels) * PRIOR_STD)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Return x · z."""
        return x * self.z.view(1, -1, 1, 1)

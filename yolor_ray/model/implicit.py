"""Implicit knowledge: learned constants that change features independently of the image (YOLOR section 3).

An operator joins the explicit features x with a representation g of a latent prior z (equation 3). A fresh prior is
neutral (section 4.3). After training, `model.fold` folds g into a convolution.
Legend: B images, C channels of x, H W cells, G groups, N = C · G channels of g.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Operator = Literal["add", "multiply", "concat", "project"]
Model = Literal["vector", "network", "factors"]

NEUTRAL = {"add": 0.0, "multiply": 1.0, "concat": 0.0}
"""The neutral constant of each operator."""
PRIOR_WIDTH = 2
"""Size of a prior that phi mixes (equations 7 and 8), as a multiple of the size of g (section 5.6)."""


def _parameter_shapes(model: Model, channels: int) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Return the shape of z and the shape of the phi that mixes z into `channels` numbers; a vector has no phi."""
    shapes: dict[Model, tuple[tuple[int, ...], tuple[int, ...] | None]] = {
        "vector": ((channels,), None),
        "network": ((PRIOR_WIDTH * channels,), (channels, PRIOR_WIDTH * channels)),
        "factors": ((PRIOR_WIDTH, channels), (PRIOR_WIDTH,)),
    }
    return shapes[model]


class Implicit(nn.Module):
    """Join features x with a constant g made of a learned prior z ~ N(0, std) (equation 3).

    Operators: `add` x + g, `multiply` x · g, `concat` (g, x) along the channels, `project` x · 2σ(⟨p, z⟩). Under `project`,
    each channel has a learned projection p of one common prior. The inner product selects (factor up to 2) or drops
    (factor 0) the channel (section 3).
    Models: `vector` g = z (equation 6), `network` g = W z (equation 7), `factors` g = Zᵀ c (equation 8). The parameter
    `phi` holds W or c. Under `multiply`, g lies around 1.
    """

    index: Tensor | None

    def __init__(
        self,
        operator: Operator,
        channels: int,
        *,
        model: Model = "vector",
        std: float,
        groups: int = 1,
        channel_indices: Sequence[int] | None = None,
    ) -> None:
        """Create a neutral prior for features of `channels` channels.

        Args:
            operator: operation that joins g and x.
            channels: channels of x, before the repetition by `groups`.
            model: model of g from z.
            std: standard deviation of the fresh prior.
            groups: copies of x, each joined with a separate part of g.
            channel_indices: channels that the prior changes; None for all.
        """
        super().__init__()
        self.operator = operator
        self.groups = groups
        self.channels = channels * groups
        prior_channels = len(channel_indices) if channel_indices is not None else self.channels
        z, phi = _parameter_shapes("network" if operator == "project" else model, prior_channels)
        self.z = nn.Parameter(torch.randn(z) * std)
        self.phi = None if phi is None else nn.Parameter((2 * torch.rand(phi) - 1) / math.sqrt(phi[-1]))
        self.register_buffer("index", None if channel_indices is None else torch.tensor(channel_indices), persistent=False)
        if phi is None and NEUTRAL[operator]:
            # The upstream networks store a plain vector around 1, so the same tensor is stored here.
            with torch.no_grad():
                self.z.add_(NEUTRAL[operator])

    def constant(self) -> Float[Tensor, "N"]:
        """Return g, one number per channel (equations 6 to 8)."""
        g = self.z if self.phi is None else self.phi @ self.z
        if self.operator == "project":
            return 2 * g.sigmoid()
        neutral = NEUTRAL[self.operator]
        if self.phi is not None:
            g = neutral + g
        return g if self.index is None else g.new_full((self.channels,), neutral).index_copy(0, self.index, g)

    def forward(self, x: Float[Tensor, "B _ H W"]) -> Float[Tensor, "B _ H W"]:
        """Return x joined with g: (B, C, H, W) -> (B, C·G, H, W), or (B, 2·C·G, H, W) under `concat`."""
        if self.groups > 1:
            x = x.repeat(1, self.groups, 1, 1)
        return OPERATORS[self.operator](x, self.constant().view(1, -1, 1, 1), self.groups)


def _concat(x: Tensor, g: Tensor, groups: int) -> Tensor:
    """Concatenate the prior and the features of each group, the prior first."""
    pairs = zip(g.expand_as(x).chunk(groups, dim=1), x.chunk(groups, dim=1), strict=True)
    return torch.cat([chunk for pair in pairs for chunk in pair], dim=1)


OPERATORS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "add": lambda x, g, _: x + g,
    "multiply": lambda x, g, _: x * g,
    "concat": _concat,
    "project": lambda x, g, _: x * g,
}

"""Hold implicit knowledge: learned constants that change features without looking at the image.

YOLOR section 3: a representation g of a latent prior z meets the explicit features x by an operator (equation 3). The prior
is made so that nothing changes at the start (section 4.3), and once learned it folds into a convolution (`model.fold`).
Legend: B images, C channels, H W cells, N channels of a prior, G groups.
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
"""The constant with which each operator changes nothing."""
PRIOR_WIDTH = 2
"""A prior that is mixed (equations 7 and 8) is this many times as large as what is made of it (section 5.6)."""


def _mix(model: Model, channels: int) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Return the shapes of z and of the phi that mixes it into `channels` numbers; a vector needs no phi."""
    shapes: dict[Model, tuple[tuple[int, ...], tuple[int, ...] | None]] = {
        "vector": ((channels,), None),
        "network": ((PRIOR_WIDTH * channels,), (channels, PRIOR_WIDTH * channels)),
        "factors": ((PRIOR_WIDTH, channels), (PRIOR_WIDTH,)),
    }
    return shapes[model]


class Implicit(nn.Module):
    """Join features with a constant g made of a learned prior z ~ N(0, std).

    Operators: `add` x + g, `multiply` x · g, `concat` (g, x) along the channels, and `project`, x · 2σ(⟨p, z⟩): each channel
    has its own learned projection p of one prior, whose inner product selects (up to 2) or drops (0) the channel.
    Models: `vector` g = z (equation 6), `network` g = W z (equation 7), `factors` g = Zᵀ c (equation 8); W and c are `phi`.
    Under `multiply` g is around 1.
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
        only: Sequence[int] | None = None,
    ) -> None:
        """Take the number of channels of x.

        With `groups`, x is repeated and each copy has a prior of its own. `only` names the channels that the prior acts on.
        """
        super().__init__()
        self.operator = operator
        self.groups = groups
        self.channels = channels * groups
        z, phi = _mix("network" if operator == "project" else model, len(only) if only is not None else self.channels)
        self.z = nn.Parameter(torch.randn(z) * std)
        self.phi = None if phi is None else nn.Parameter((2 * torch.rand(phi) - 1) / math.sqrt(phi[-1]))
        self.register_buffer("index", None if only is None else torch.tensor(only), persistent=False)
        if phi is None and NEUTRAL[operator]:
            # A plain vector is stored as the published networks store it, around 1.
            with torch.no_grad():
                self.z.add_(NEUTRAL[operator])

    def constant(self) -> Float[Tensor, "N"]:
        """Return g, one number per channel."""
        g = self.z if self.phi is None else self.phi @ self.z
        if self.operator == "project":
            return 2 * g.sigmoid()
        neutral = NEUTRAL[self.operator]
        if self.phi is not None:
            g = neutral + g
        return g if self.index is None else g.new_full((self.channels,), neutral).index_copy(0, self.index, g)

    def forward(self, x: Float[Tensor, "B _ H W"]) -> Float[Tensor, "B _ H W"]:
        """Return x joined with g; `groups` times the channels, and twice that with `concat`."""
        if self.groups > 1:
            x = x.repeat(1, self.groups, 1, 1)
        return OPERATORS[self.operator](x, self.constant().view(1, -1, 1, 1), self.groups)


def _concat(x: Tensor, g: Tensor, groups: int) -> Tensor:
    """Put each group's prior before its features."""
    parts = zip(g.expand_as(x).chunk(groups, dim=1), x.chunk(groups, dim=1), strict=True)
    return torch.cat([part for pair in parts for part in pair], dim=1)


OPERATORS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "add": lambda x, g, _: x + g,
    "multiply": lambda x, g, _: x * g,
    "concat": _concat,
    "project": lambda x, g, _: x * g,
}

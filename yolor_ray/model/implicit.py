"""Implicit knowledge: learned constants that change features independently of the image (YOLOR section 3).

An operator joins the explicit features x with a representation g of a latent prior z (equation 3). A fresh prior is
neutral (section 4.3). After training, `model.fold` folds g into a convolution.
Legend: B images, C channels of x, H W cells, G groups, N = C · G channels of g, R dimensions of a projection.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Operator = Literal["add", "multiply", "add_multiply", "concat", "project"]
Model = Literal["vector", "network", "factors"]

NEUTRAL = {"add": 0.0, "multiply": 1.0, "concat": 0.0}
"""The neutral constant of each operator that has one for all channels."""
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

    Operators: `add` x + g, `multiply` x · g, `add_multiply` x + g for some channels and x · g for the others, `concat` (g, x) along the
    channels. Models: `vector` g = z (equation 6), `network` g = W z (equation 7), `factors` g = Zᵀ c (equation 8). The parameter `phi`
    holds W or c. Channels that are multiplied have a g around 1.
    See `Projection` for the inner product.
    """

    index: Tensor | None
    added: Tensor | None

    def __init__(
        self,
        operator: Operator,
        channels: int,
        *,
        model: Model = "vector",
        std: float,
        groups: int = 1,
        channel_indices: Sequence[int] | None = None,
        added_channels: Sequence[int] = (),
    ) -> None:
        """Create a neutral prior for features of `channels` channels.

        Args:
            operator: operation that joins g and x.
            channels: channels of x, before the repetition by `groups`.
            model: model of g from z.
            std: standard deviation of the fresh prior.
            groups: copies of x, each joined with a separate part of g.
            channel_indices: channels that the prior changes; None for all.
            added_channels: channels that `add_multiply` adds to; that operator changes all channels.
        """
        super().__init__()
        self.operator = operator
        self.groups = groups
        self.channels = channels * groups
        prior_channels = len(channel_indices) if channel_indices is not None else self.channels
        z, phi = _parameter_shapes(model, prior_channels)
        self.z = nn.Parameter(torch.randn(z) * std)
        self.phi = None if phi is None else nn.Parameter((2 * torch.rand(phi) - 1) / math.sqrt(phi[-1]))
        self.register_buffer("index", None if channel_indices is None else torch.tensor(channel_indices), persistent=False)
        is_added = torch.tensor([channel in added_channels for channel in range(self.channels)])
        self.register_buffer("added", is_added if operator == "add_multiply" else None, persistent=False)
        if phi is None:
            # The upstream networks store a plain vector around 1, so the same tensor is stored here.
            with torch.no_grad():
                self.z.add_(self._neutral())

    def _neutral(self) -> Tensor | float:
        """Return the constant that changes nothing, for all channels or for each."""
        return NEUTRAL[self.operator] if self.added is None else (~self.added).to(self.z.dtype)

    def constant(self) -> Float[Tensor, "N"]:
        """Return g, one number per channel (equations 6 to 8)."""
        g = self.z if self.phi is None else self._neutral() + self.phi @ self.z
        return g if self.index is None else g.new_full((self.channels,), NEUTRAL[self.operator]).index_copy(0, self.index, g)

    def scale_and_shift(self) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
        """Return s and t such that the operator gives s · x + t; `concat` has none."""
        g = self.constant()
        added = self.added if self.added is not None else torch.tensor(self.operator == "add", device=g.device)
        return torch.where(added, 1.0, g), torch.where(added, g, 0.0)

    def forward(self, x: Float[Tensor, "B _ H W"]) -> Float[Tensor, "B _ H W"]:
        """Return x joined with g: (B, C, H, W) -> (B, C·G, H, W), or (B, 2·C·G, H, W) under `concat`."""
        if self.groups > 1:
            x = x.repeat(1, self.groups, 1, 1)
        return OPERATORS[self.operator](self, x)


def _per_channel(g: Tensor) -> Float[Tensor, "1 N 1 1"]:
    return g.view(1, -1, 1, 1)


def _concat(implicit: Implicit, x: Tensor) -> Tensor:
    """Concatenate the prior and the features of each group, the prior first."""
    g = _per_channel(implicit.constant())
    pairs = zip(g.expand_as(x).chunk(implicit.groups, dim=1), x.chunk(implicit.groups, dim=1), strict=True)
    return torch.cat([chunk for pair in pairs for chunk in pair], dim=1)


def _add_multiply(implicit: Implicit, x: Tensor) -> Tensor:
    scale, shift = implicit.scale_and_shift()
    return _per_channel(scale) * x + _per_channel(shift)


OPERATORS: dict[str, Callable[[Implicit, Tensor], Tensor]] = {
    "add": lambda implicit, x: x + _per_channel(implicit.constant()),
    "multiply": lambda implicit, x: x * _per_channel(implicit.constant()),
    "add_multiply": _add_multiply,
    "concat": _concat,
}


class Projection(nn.Module):
    """Inner products of the features with R learned vectors z (section 3.1): y = Z x has R < C channels.

    z starts at the R directions that the convolution behind it depends on most. The fresh projection is therefore neutral where that
    convolution has at most R outputs.
    """

    operator: Operator = "project"

    def __init__(self, directions: Float[Tensor, "R C"]) -> None:
        super().__init__()
        self.z = nn.Parameter(directions)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B R H W"]:
        """Return the inner product of each cell's features with each vector."""
        return F.conv2d(x, self.z[:, :, None, None])


IMPLICIT_MODULES = (Implicit, Projection)
"""Module classes of implicit knowledge."""


@torch.no_grad()
def principal_directions(weight: Float[Tensor, "O C _ _"], count: int) -> Float[Tensor, "count C"]:
    """Return orthonormal vectors over the input channels of a convolution that keep the most of its weights, the best first."""
    rows = weight.double().transpose(1, -1).flatten(0, -2)
    return torch.linalg.eigh(rows.T @ rows).eigenvectors.flip(1)[:, :count].T.to(weight.dtype).contiguous()


@torch.no_grad()
def project_weight(weight: Float[Tensor, "O C _ _"], z: Float[Tensor, "R C"]) -> Float[Tensor, "O R _ _"]:
    """Return the weights of a convolution for projected features; orthonormal rows of z that span the weights lose nothing."""
    return torch.einsum("ochw,rc->orhw", weight.double(), z.double()).to(weight.dtype)


@torch.no_grad()
def unproject_weight(weight: Float[Tensor, "O R _ _"], z: Float[Tensor, "R C"]) -> Float[Tensor, "O C _ _"]:
    """Return the weights that act on features as `weight` acts on their projection, exactly."""
    return torch.einsum("orhw,rc->ochw", weight.double(), z.double()).to(weight.dtype)

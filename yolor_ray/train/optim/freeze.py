"""Freeze parts of a pretrained network: their weights and batch-norm statistics stay as they are, and only the rest learns."""

from typing import Any

from torch import nn

from yolor_ray.config.train import Freeze
from yolor_ray.model.network import Yolor

FROZEN_PARTS: dict[Freeze, tuple[str, ...]] = {"none": (), "backbone": ("backbone",), "neck": ("backbone", "neck")}
"""Modules of the network that each word freezes. They are the first ones, so that no gradient has to pass through them."""


def freeze_parts(network: Yolor, freeze: Freeze) -> None:
    """Freeze the named parts, also against a later `network.train()`; call before the optimizer and the distributed wrapper are made.

    Frozen parameters need no gradient. Autograd therefore records nothing of the frozen parts, and the step is faster.
    """
    for name in FROZEN_PARTS[freeze]:
        part = network.get_submodule(name)
        part.requires_grad_(False).eval()
        part.register_forward_pre_hook(_keep_statistics)


def _keep_statistics(part: nn.Module, _: Any) -> None:
    """Return a frozen part to evaluation mode, in which batch norm uses and keeps its statistics."""
    if part.training:
        part.eval()

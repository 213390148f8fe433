"""Fixture: tiny networks of any configuration, with batch norm statistics and implicit vectors far from their initial values."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import settings
from torch import nn

from yolor_ray.config import NetworkConfig
from yolor_ray.model.implicit import Implicit, Projection
from yolor_ray.model.network import Yolor

settings.register_profile("steady", deadline=None, database=None, derandomize=True)
settings.load_profile("steady")

ANCHORS = torch.tensor([[[8.0, 10.0], [16.0, 12.0], [12.0, 24.0]], [[30.0, 30.0], [60.0, 32.0], [40.0, 80.0]]])


def tiny_network(classes: int = 3, seed: int = 0, **settings: object) -> Yolor:
    """Return a tiny network with two levels; keywords are fields of `NetworkConfig`."""
    settings = {"stem": "reorg", **settings}
    stages = 3 if settings["stem"] == "reorg" else 4
    widths, depths = (8, 16, 24, 32)[:stages], (1, 2, 1, 1)[:stages]
    config = NetworkConfig(**{"stem_width": 8, "widths": widths, "depths": depths, "levels": 2, "neck_depth": 1, **settings})
    torch.manual_seed(seed)
    network = Yolor(config, classes, ANCHORS, image_classes=3, keypoints=5, identities=(4,))
    with torch.no_grad():
        for module in network.modules():
            _randomize(module)
    return network.eval()


@pytest.fixture
def make_network() -> Callable[..., Yolor]:
    """Return `tiny_network`."""
    return tiny_network


def _randomize(module: nn.Module) -> None:
    if isinstance(module, nn.BatchNorm2d):
        nn.init.uniform_(module.weight, 0.5, 2.0)
        nn.init.normal_(module.bias, std=0.5)
        nn.init.normal_(module.running_mean, std=0.5)
        nn.init.uniform_(module.running_var, 0.3, 2.0)
    elif isinstance(module, Projection):
        nn.init.normal_(module.z)
    elif isinstance(module, Implicit):
        nn.init.normal_(module.z, mean=1.0, std=2.0)

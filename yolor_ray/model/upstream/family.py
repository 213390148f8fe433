"""The upstream networks by name, their anchors and input sizes, and networks without memory for their numbers.

Legend: L levels, A anchors per cell.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from yolor_ray.config import NetworkConfig, presets
from yolor_ray.model.network import Yolor

MAIN_BRANCH = {
    "YOLOR-CSP": presets.CSP,
    "YOLOR-CSP-X": presets.CSP_X,
    "YOLOv4-CSP": presets.V4_CSP,
    "YOLOv4-CSP-X": presets.V4_CSP_X,
    "YOLOR-P6": presets.P6,
    "YOLOR-W6": presets.W6,
    "YOLOv4-P6": presets.V4_P6,
    "YOLOv4-P7": presets.V4_P7,
}
"""Networks of the main branch."""
PAPER_BRANCH = {
    "YOLOR-S4-DWT": presets.S4_DWT,
    "YOLOR-S4-S2D": presets.S4_S2D,
    "YOLOR-P6": presets.P6_PAPER,
    "YOLOR-W6": presets.W6_PAPER,
    "YOLOR-E6": presets.E6,
    "YOLOR-D6": presets.D6,
}
"""Networks of the paper branch; P6 and W6 differ from the main branch's."""
NETWORKS = {"main": MAIN_BRANCH, "paper": PAPER_BRANCH}
"""All upstream networks by layout."""
ANCHORS = {
    (3, 3): (12, 16, 19, 36, 40, 28, 36, 75, 76, 55, 72, 146, 142, 110, 192, 243, 459, 401),
    (4, 3): (19, 27, 44, 40, 38, 94, 96, 68, 86, 152, 180, 137, 140, 301, 303, 264, 238, 542, 436, 615, 739, 380, 925, 792),
    (4, 4): (
        *(13, 17, 31, 25, 24, 51, 61, 45, 61, 45, 48, 102, 119, 96, 97, 189),
        *(97, 189, 217, 184, 171, 384, 324, 451, 324, 451, 545, 357, 616, 618, 1024, 1024),
    ),
    (5, 4): (
        *(13, 17, 22, 25, 27, 66, 55, 41, 57, 88, 112, 69, 69, 177, 136, 138, 136, 138, 287, 114, 134, 275, 268, 248),
        *(268, 248, 232, 504, 445, 416, 640, 640, 812, 393, 477, 808, 1070, 908, 1408, 1408),
    ),
}
"""Upstream anchors by number of levels and of anchors per cell: widths and heights in pixels, fine level first."""
IMAGE_PX = {3: 640, 4: 1280, 5: 1536}
"""Side of the network input in upstream training, pixels, by number of levels."""


def upstream_anchors(config: NetworkConfig) -> Float[Tensor, "L A 2"]:
    """Return the upstream anchors, in pixels, for a network's levels and anchors per cell."""
    shape = config.levels, config.anchors_per_level
    return torch.tensor(ANCHORS[shape], dtype=torch.float32).view(*shape, 2)


def make_meta_network(config: NetworkConfig, classes: int = 1) -> Yolor:
    """Return a network on the meta device: names and shapes without numbers."""
    with torch.device("meta"):
        return Yolor(config, classes, torch.empty(config.levels, config.anchors_per_level, 2)).eval()


def without_widths(config: NetworkConfig) -> NetworkConfig:
    """Return a configuration with all widths replaced by a constant, for comparisons."""
    return replace(config, stem_width=1, widths=(8,) * len(config.widths))


def upstream_name(config: NetworkConfig) -> str:
    """Return the upstream name of a network, followed by its widths if they differ from the upstream ones."""
    named_configs = [item for networks in NETWORKS.values() for item in networks.items()]
    for name, upstream_config in named_configs:
        if upstream_config == config:
            return name
    base = next(name for name, upstream_config in named_configs if without_widths(upstream_config) == without_widths(config))
    return f"{base} with other widths: stem {config.stem_width}, stages {', '.join(map(str, config.widths))}"

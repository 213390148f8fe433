"""Name the published networks, and build one of them, or a narrowed one, without memory for its numbers."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from yolor_ray.config import NetworkConfig, presets
from yolor_ray.model.network import Yolor

MAIN = {
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
PAPER = {
    "YOLOR-S4-DWT": presets.S4_DWT,
    "YOLOR-S4-S2D": presets.S4_S2D,
    "YOLOR-P6": presets.P6_PAPER,
    "YOLOR-W6": presets.W6_PAPER,
    "YOLOR-E6": presets.E6,
    "YOLOR-D6": presets.D6,
}
"""Networks of the paper branch; its P6 and W6 are not those of the main branch."""
FAMILY = {"main": MAIN, "paper": PAPER}
"""All of them, by layout."""
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
"""Published anchors by number of levels and of anchors per cell: widths and heights in pixels, fine level first."""
IMAGE_PX = {3: 640, 4: 1280, 5: 1536}
"""Sides of the input that the published networks were trained for, by number of levels."""


def published_anchors(config: NetworkConfig) -> Float[Tensor, "L A 2"]:
    """Return the published anchors in pixels of a network like this."""
    shape = config.levels, config.anchors_per_level
    return torch.tensor(ANCHORS[shape], dtype=torch.float32).view(*shape, 2)


def outline(config: NetworkConfig, classes: int = 1) -> Yolor:
    """Return a network that has names and shapes but no numbers, on the meta device."""
    with torch.device("meta"):
        return Yolor(config, classes, torch.empty(config.levels, config.anchors_per_level, 2)).eval()


def skeleton(config: NetworkConfig) -> NetworkConfig:
    """Return a network's configuration without its widths."""
    return replace(config, stem_width=1, widths=(8,) * len(config.widths))


def title_of(config: NetworkConfig) -> str:
    """Return the published name of a network, with its widths where they are not the published ones."""
    named = [item for networks in FAMILY.values() for item in networks.items()]
    for title, published in named:
        if published == config:
            return title
    like = next(title for title, published in named if skeleton(published) == skeleton(config))
    return f"{like} with other widths: stem {config.stem_width}, stages {', '.join(map(str, config.widths))}"

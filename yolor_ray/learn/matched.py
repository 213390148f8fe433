"""Take what a head says where boxes were matched.

Legend: B images, A anchors per cell, F numbers per anchor, M matches of all levels.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from yolor_ray.learn.assign import Matches


def at_matches(levels: list[Float[Tensor, "B A _ _ F"]], matches: list[Matches]) -> Float[Tensor, "M F"]:
    """Return the numbers of every match, level by level, in float32."""
    found = [level[m.images, m.anchors, m.rows, m.columns] for level, m in zip(levels, matches, strict=True)]
    return torch.cat(found).float()

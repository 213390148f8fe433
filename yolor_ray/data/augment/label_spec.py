"""Say what training wants to know of each image besides its boxes, which follows from the tasks of the network.

Legend: M image classes, I individuals.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LabelSpec:
    """Name what samples carry besides boxes; what is not wanted costs nothing."""

    masks: bool = False
    """Which pixels each object has."""
    keypoint_names: tuple[str, ...] = ()
    """Names of the keypoints of each object; empty: none are wanted."""
    identities: np.ndarray | None = None
    """(I,) int64, sorted: the individuals to tell apart; samples name them by their place here."""
    image_classes: np.ndarray | None = None
    """(members, M) bool: for each data set of a union, the image classes that its images are annotated with."""


BOXES_ONLY = LabelSpec()

"""Annotations of the network's tasks, needed in training besides boxes.

Legend: K object classes, M image classes, I individuals.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LabelSpec:
    """Annotations of a sample besides boxes; annotations outside the spec are never computed."""

    masks: bool = False
    """Carry the pixels of each object."""
    keypoint_names: tuple[str, ...] = ()
    """Names of the keypoints per object; empty for samples without keypoints."""
    identities: np.ndarray | None = None
    """(I,) int64, sorted: the individuals of the training set; samples hold indices into this array."""
    object_classes: np.ndarray | None = None
    """(members, K) bool: for each dataset of a union, the object classes that its images are annotated with; None if all name all."""
    image_classes: np.ndarray | None = None
    """(members, M) bool: for each dataset of a union, the image classes that its images are annotated with."""


BOXES_ONLY = LabelSpec()

"""Pair left and right keypoints by their names, because a horizontally flipped left hand is a right hand."""

import re
from collections.abc import Sequence

import numpy as np

SIDES = re.compile(
    r"""left|right|Left|Right|LEFT|RIGHT
    |(?<![A-Z])[LR](?![a-z])            # eyeL, forelegR4, LHip, L_eye
    |(?<![A-Za-z])[lr](?![A-Za-z])      # l_eye, eye_r
    """,
    re.VERBOSE,
)
OPPOSITE_SIDE = {"left": "right", "Left": "Right", "LEFT": "RIGHT", "L": "R", "l": "r"}
OPPOSITE_SIDE |= {right: left for left, right in OPPOSITE_SIDE.items()}


def flipped_keypoint_order(names: Sequence[str]) -> np.ndarray:
    """Return the keypoint order of a flipped object, (J,) int64: the index of each keypoint's opposite, or its own without one."""
    index_of = {name: index for index, name in enumerate(names)}
    opposites = [SIDES.sub(lambda match: OPPOSITE_SIDE[match[0]], name) for name in names]
    return np.array([index_of.get(opposite, index) for index, opposite in enumerate(opposites)], np.int64)

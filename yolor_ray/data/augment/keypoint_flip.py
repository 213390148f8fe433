"""Find which keypoint becomes which in a mirror, by their names: a mirrored left hand is a right hand."""

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
OTHER_SIDE = {"left": "right", "Left": "Right", "LEFT": "RIGHT", "L": "R", "l": "r"}
OTHER_SIDE |= {right: left for left, right in OTHER_SIDE.items()}


def flipped_keypoint_order(names: Sequence[str]) -> np.ndarray:
    """Return (J,) int64: whose place each keypoint takes in a mirror; itself when no name among `names` is its other side."""
    number = {name: at for at, name in enumerate(names)}
    others = [SIDES.sub(lambda found: OTHER_SIDE[found[0]], name) for name in names]
    return np.array([number.get(other, at) for at, other in enumerate(others)], np.int64)

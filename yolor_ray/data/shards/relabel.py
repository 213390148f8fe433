"""Bring the tables of one data set to the names of a union: labels, joints and individuals change, encoded images do not.

Each column is changed as a whole, in NumPy; nothing is copied per image.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MEMBER_BITS = 40
"""Individuals of a member are numbered below 2 to this power; above it comes the number of the member."""
UNKNOWN_KEYPOINT = (0.0, 0.0, -1.0)
"""x, y and visibility of a joint that a member's annotators were not asked for."""


class LabelMapping(NamedTuple):
    """Say where the names of a member stand among those of the union. Legend: K classes, M image classes, J joints."""

    labels: np.ndarray
    """(K,) int64: of each class of the member, its label in the union."""
    image_labels: np.ndarray
    """(M,) int64: of each image class of the member, its label in the union."""
    joints: np.ndarray
    """(J,) int64: of each joint of the member, its place in the union."""
    all_joints: int
    """Joints of the union."""
    member: int
    """Number of the member."""


def apply_mapping(table: pa.Table, translation: LabelMapping) -> pa.Table:
    """Return a table of a member, which may hold only some of the columns, in the names of the union."""
    changes: dict[str, Callable[[pa.Array], pa.Array]] = {
        "labels": lambda values: pa.array(translation.labels[np.asarray(values)]),
        "image_labels": lambda values: pa.array(translation.image_labels[np.asarray(values)]),
        "identities": lambda values: pa.array(_numbered(np.asarray(values), translation.member)),
        "keypoints": lambda points: _keypoints(points, translation),
    }
    if "camera" in table.column_names:
        at = table.schema.get_field_index("camera")
        table = table.set_column(at, table.schema.field(at), pa.array(_numbered(np.asarray(table["camera"]), translation.member)))
    for at, field in enumerate(table.schema):
        if field.name in changes:
            table = table.set_column(at, field, _with_values(table.column(at).combine_chunks(), changes[field.name]))
    return table


def _with_values(lists: pa.ListArray, change: Callable[[pa.Array], pa.Array]) -> pa.ListArray:
    """Return lists of the same lengths, and null where they were null, with all their values changed at once."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    ends = np.cumsum([0, *lengths], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), change(lists.flatten()), type=lists.type, mask=lists.is_null())


def _numbered(values: np.ndarray, member: int) -> np.ndarray:
    """Return the numbers of individuals or cameras so that no other member has the same; unknown ones stay -1."""
    return np.where(values >= 0, values + (member << MEMBER_BITS), values)


def _keypoints(points: pa.ListArray, translation: LabelMapping) -> pa.ListArray:
    """Return one list of 3 numbers per joint of the union for each object; `points` has those of the member."""
    own = np.asarray(points.flatten(), np.float32).reshape(len(points), len(translation.joints), 3)
    spread = np.empty((len(points), translation.all_joints, 3), np.float32)
    spread[:] = UNKNOWN_KEYPOINT
    spread[:, translation.joints] = own
    ends = np.arange(len(points) + 1, dtype=np.int32) * 3 * translation.all_joints
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(spread.ravel()))

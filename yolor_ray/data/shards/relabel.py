"""Relabel the tables of one member to the names of its union: labels, keypoints and individuals change, encoded images do not.

Each column is changed at once, in NumPy; nothing is copied per image.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MEMBER_BITS = 40
"""Individuals of a member have numbers below 2 to this power; the bits above hold the index of the member."""
UNKNOWN_KEYPOINT = (0.0, 0.0, -1.0)
"""x, y and visibility of a keypoint that a member is not annotated with."""


class LabelMapping(NamedTuple):
    """Indices of a member's names in its union. Legend: K classes, M image classes, J keypoints of the member."""

    labels: np.ndarray
    """(K,) int64: label in the union of each class of the member."""
    image_labels: np.ndarray
    """(M,) int64: label in the union of each image class of the member."""
    keypoints: np.ndarray
    """(J,) int64: index in the union of each keypoint of the member."""
    keypoint_count: int
    """Keypoints of the union."""
    member: int
    """Index of the member in the union."""


def apply_mapping(table: pa.Table, mapping: LabelMapping) -> pa.Table:
    """Relabel a table of a member, which may hold only some of the columns, to the names of the union."""
    changes: dict[str, Callable[[pa.Array], pa.Array]] = {
        "labels": lambda values: pa.array(mapping.labels[np.asarray(values)]),
        "image_labels": lambda values: pa.array(mapping.image_labels[np.asarray(values)]),
        "identities": lambda values: pa.array(_add_member(np.asarray(values), mapping.member)),
        "keypoints": lambda points: _spread_keypoints(points, mapping),
    }
    if "camera" in table.column_names:
        index = table.schema.get_field_index("camera")
        cameras = pa.array(_add_member(np.asarray(table["camera"]), mapping.member))
        table = table.set_column(index, table.schema.field(index), cameras)
    for index, field in enumerate(table.schema):
        if field.name in changes:
            table = table.set_column(index, field, _replace_values(table.column(index).combine_chunks(), changes[field.name]))
    return table


def _replace_values(lists: pa.ListArray, change: Callable[[pa.Array], pa.Array]) -> pa.ListArray:
    """Change the values of all lists at once; lengths and nulls of the lists stay."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    ends = np.cumsum([0, *lengths], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), change(lists.flatten()), type=lists.type, mask=lists.is_null())


def _add_member(numbers: np.ndarray, member: int) -> np.ndarray:
    """Make numbers of individuals or cameras unique over the members; unknown numbers stay -1."""
    return np.where(numbers >= 0, numbers + (member << MEMBER_BITS), numbers)


def _spread_keypoints(points: pa.ListArray, mapping: LabelMapping) -> pa.ListArray:
    """Move keypoints of the member to their indices in the union; `points` holds 3 numbers per keypoint for each object."""
    of_member = np.asarray(points.flatten(), np.float32).reshape(len(points), len(mapping.keypoints), 3)
    of_union = np.empty((len(points), mapping.keypoint_count, 3), np.float32)
    of_union[:] = UNKNOWN_KEYPOINT
    of_union[:, mapping.keypoints] = of_member
    ends = np.arange(len(points) + 1, dtype=np.int32) * 3 * mapping.keypoint_count
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(of_union.ravel()))

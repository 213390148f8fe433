"""Convert records to Arrow tables and back: one row per image, with its encoded bytes and its annotations.

Legend: N objects, J keypoints per object, M labels of the whole image.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from yolor_ray.data.shards.records import Objects, Record

IMAGE_COLUMNS = ("name", "image", "width", "height", "image_labels", "tasks", "camera")
"""Columns about the image; all other columns are about its objects."""

SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("boxes_xyxy", pa.list_(pa.list_(pa.float32(), 4)), nullable=False),
        pa.field("labels", pa.list_(pa.int64()), nullable=False),
        pa.field("crowd", pa.list_(pa.bool_()), nullable=False),
        pa.field("areas", pa.list_(pa.float32()), nullable=False),
        pa.field("masks", pa.list_(pa.binary())),
        pa.field("keypoints", pa.list_(pa.list_(pa.float32()))),
        pa.field("identities", pa.list_(pa.int64())),
        pa.field("image_labels", pa.list_(pa.int64()), nullable=False),
        pa.field("tasks", pa.list_(pa.string()), nullable=False),
        pa.field("camera", pa.int64(), nullable=False),
    ]
)


def to_table(records: Sequence[Record]) -> pa.Table:
    """Convert records to a table in SCHEMA; keypoints become 3J numbers per object."""
    columns = [_column(field, records) for field in SCHEMA]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _column(field: pa.Field, records: Sequence[Record]) -> pa.Array:
    holders = records if field.name in IMAGE_COLUMNS else [record.objects for record in records]
    rows = [getattr(holder, field.name) for holder in holders]
    if field.name == "keypoints":
        rows = [None if row is None else row.reshape(len(row), row.shape[1] * 3) for row in rows]
    return pa.array([row.tolist() if isinstance(row, np.ndarray) else row for row in rows], field.type)


def to_records(table: pa.Table) -> list[Record]:
    """Convert the rows of a table in SCHEMA to records.

    Arrays may be read-only. Keypoints of an image without objects are (0, J, 3) if another row of the table has objects, else (0, 0, 3).
    """
    rows = table.select(SCHEMA.names).combine_chunks()
    scalars = [rows[name].to_pylist() for name in ("name", "image", "width", "height")]
    lists = {name: _lists(rows[name]) for name in SCHEMA.names if name not in IMAGE_COLUMNS}
    keypoint_count = max((len(points[0]) // 3 for points in lists["keypoints"] if points), default=0)
    objects = [_objects(lists, row, keypoint_count) for row in range(len(rows))]
    labels = [_array(values, np.int64) for values in _lists(rows["image_labels"])]
    tasks = map(tuple, rows["tasks"].to_pylist())
    return [Record(*values) for values in zip(*scalars, objects, labels, tasks, rows["camera"].to_pylist(), strict=True)]


def _lists(column: pa.ChunkedArray) -> list[Any]:
    return [value.values if value.is_valid else None for chunk in column.chunks for value in chunk]


def _array(values: pa.Array, dtype: type) -> np.ndarray:
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype)


def _objects(lists: dict[str, list[Any]], row: int, keypoint_count: int) -> Objects:
    values = {name: column[row] for name, column in lists.items()}
    masks, keypoints, identities = values["masks"], values["keypoints"], values["identities"]
    return Objects(
        boxes_xyxy=_array(values["boxes_xyxy"].flatten(), np.float32).reshape(-1, 4),
        labels=_array(values["labels"], np.int64),
        crowd=_array(values["crowd"], np.bool_),
        areas=_array(values["areas"], np.float32),
        masks=None if masks is None else tuple(masks.to_pylist()),
        keypoints=None if keypoints is None else _array(keypoints.flatten(), np.float32).reshape(len(keypoints), keypoint_count, 3),
        identities=None if identities is None else _array(identities, np.int64),
    )

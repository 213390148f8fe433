"""Check the values of a manifest and of its rows: a hash proves that they are those which were packed, not that packing made them.

Whatever a stranger's dataset holds, the rows that pass have sizes, boxes, labels, masks and keypoints as `records` describes them.
Legend: R rows, N objects of all rows, K classes, M image classes, J keypoints.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from yolor_ray.class_names import ClassNames, class_keypoints_problem, unusable_name
from yolor_ray.config.network import TASKS
from yolor_ray.data import rle
from yolor_ray.data.images.decode import MAX_PIXELS
from yolor_ray.data.shards.relabel import MEMBER_BITS
from yolor_ray.errors import DataError

OBJECT_COLUMNS = ("boxes_xyxy", "labels", "crowd", "areas", "masks", "keypoints", "identities")
LISTS = (*OBJECT_COLUMNS, "image_labels", "tasks")
LARGEST_ID = (1 << MEMBER_BITS) - 1
"""Largest number of an individual or a camera."""
FAR_PX = 1e9
"""Distance from the image beyond which a keypoint is no point, pixels."""


def check_names_and_counts(content: dict[str, Any]) -> None:
    """Raise ValueError for names and counts of a manifest that packing does not write."""
    for field in ("classes", "image_classes", "keypoint_names"):
        if (name := unusable_name(content[field])) is not None:
            raise ValueError(f"{field} with {name!r}")
    if problem := class_keypoints_problem(content.get("class_keypoints", {}), content["classes"], content["keypoint_names"]):
        raise ValueError(f"class_keypoints with {problem}")
    if not set(content["tasks"]) <= set(TASKS):
        raise ValueError(f"tasks {content['tasks']}")
    boxes, boxes_per_class = content["boxes"], content["boxes_per_class"]
    counts = [content["images"], boxes, *boxes_per_class.values(), *content["faults"].values(), content.get("crowds") or 0]
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"counts {counts[:8]}")
    if boxes_per_class.keys() != set(content["classes"]) or sum(boxes_per_class.values()) != boxes:
        raise ValueError(f"{boxes} boxes, and others per class")
    if not isinstance(content["digest"], str):
        raise ValueError(f"digest {content['digest']!r}")


def check_rows(table: pa.Table, names: ClassNames) -> None:
    """Check the columns of a table in the schema of shards, or of some of its columns.

    Args:
        table: rows of one dataset, before any relabelling.
        names: names of the dataset.

    Raises:
        DataError: a value is none that packing writes; the message has the row and the column.

    """
    columns = {name: column.combine_chunks() for name, column in zip(table.column_names, table.columns, strict=True)}
    lengths = {name: pc.list_value_length(columns[name]).to_numpy(zero_copy_only=False) for name in LISTS if name in columns}
    _check_lengths(lengths)
    width, height = (_numbers(columns[name]) if name in columns else None for name in ("width", "height"))
    if width is not None and height is not None:
        _refuse(
            (width < 1) | (height < 1) | (width.astype(np.int64) * height > MAX_PIXELS), "width and height", np.stack((width, height), 1)
        )
    if "boxes_xyxy" in columns:
        _check_boxes(columns["boxes_xyxy"], lengths["boxes_xyxy"], width, height)
    ranges = {"labels": (0, len(names.classes) - 1), "image_labels": (0, len(names.image_classes) - 1), "identities": (-1, LARGEST_ID)}
    for name, (lowest, highest) in ranges.items():
        if name in columns:
            values = _numbers(columns[name])
            _refuse((values < lowest) | (values > highest), name, values, lengths[name], f"from {lowest} to {highest}")
    if "areas" in columns:
        values = _numbers(columns["areas"])
        _refuse(~(np.isfinite(values) & (values >= 0)), "areas", values, lengths["areas"])
    if "crowd" in columns:
        _numbers(columns["crowd"])
    _check_others(columns, lengths, len(names.keypoint_names), width, height)


def _check_others(
    columns: dict[str, pa.Array], lengths: dict[str, np.ndarray], keypoints: int, width: np.ndarray | None, height: np.ndarray | None
) -> None:
    if "tasks" in columns:
        known = pc.is_in(columns["tasks"].flatten(), value_set=pa.array(TASKS)).to_numpy(zero_copy_only=False)
        _refuse(~known, "tasks", columns["tasks"].flatten(), lengths["tasks"], f"some of {', '.join(TASKS)}")
    if "camera" in columns:
        cameras = _numbers(columns["camera"])
        _refuse((cameras < -1) | (cameras > LARGEST_ID), "camera", cameras)
    if "keypoints" in columns:
        _check_keypoints(columns["keypoints"], lengths["keypoints"], keypoints)
    if "masks" in columns and width is not None and height is not None:
        masks, rows = columns["masks"].flatten(), _rows(lengths["masks"])
        known = masks.is_valid().to_numpy(zero_copy_only=False)
        if known.any():
            pixels = width.astype(np.int64)[rows] * height[rows]
            wrong = np.zeros(len(masks), np.bool_)
            wrong[known] = ~rle.are_valid(masks.drop_null().to_pylist(), pixels[known])
            _refuse(wrong, "masks", masks, lengths["masks"], "run lengths over all pixels of the image")


def _numbers(column: pa.Array) -> np.ndarray:
    """Return all values of a column."""
    values = column.flatten() if pa.types.is_list(column.type) else column
    if values.null_count:
        raise DataError(f"found {values.null_count} absent values of type {values.type}, expected none")
    return values.to_numpy(zero_copy_only=False)


def _rows(lengths: np.ndarray) -> np.ndarray:
    """Return the row of each value of a list column."""
    return np.repeat(np.arange(len(lengths)), np.nan_to_num(lengths).astype(np.int64))


def _check_lengths(lengths: dict[str, np.ndarray]) -> None:
    """Refuse columns about objects with different numbers of values in a row; columns of other tasks may be absent in a row."""
    counted = [(name, values) for name, values in lengths.items() if name in OBJECT_COLUMNS]
    for name, values in counted[1:]:
        first = counted[0][1]
        differ = (values != first) & ~np.isnan(values.astype(float)) & ~np.isnan(first.astype(float))
        _refuse(differ, name, values, expected=f"as many values as {counted[0][0]}")


def _check_boxes(boxes: pa.Array, lengths: np.ndarray, width: np.ndarray | None, height: np.ndarray | None) -> None:
    """Refuse boxes that are not finite, have no area, or do not lie on the image."""
    flat = boxes.flatten()
    values = flat.flatten()
    if flat.null_count or values.null_count:
        raise DataError("boxes_xyxy: found an absent number, expected none")
    corners = values.to_numpy(zero_copy_only=False).reshape(-1, 4)
    rows = _rows(lengths)
    valid = np.isfinite(corners).all(axis=1) & (corners[:, :2] >= 0).all(axis=1) & (corners[:, :2] < corners[:, 2:]).all(axis=1)
    if width is not None and height is not None:
        valid &= (corners[:, 2] <= width[rows]) & (corners[:, 3] <= height[rows])
    _refuse(~valid, "boxes_xyxy", corners, lengths, "x1 < x2 and y1 < y2 on the image")


def _check_keypoints(keypoints: pa.Array, lengths: np.ndarray, count: int) -> None:
    """Refuse objects without 3 finite numbers for each of `count` keypoints."""
    objects = keypoints.flatten()
    sizes = pc.list_value_length(objects).to_numpy(zero_copy_only=False)
    _refuse(sizes != 3 * count, "keypoints", sizes, lengths, f"3 numbers for each of {count} keypoints")
    numbers = objects.flatten()
    values = np.nan_to_num(numbers.to_numpy(zero_copy_only=False), nan=np.inf)
    if numbers.null_count or (np.abs(values) > FAR_PX).any():
        raise DataError("keypoints: found a coordinate that is no number of pixels")


def _refuse(
    wrong: np.ndarray,
    name: str,
    values: np.ndarray | pa.Array,
    lengths: np.ndarray | None = None,
    expected: str = "a value that packing writes",
) -> None:
    """Raise DataError for the first wrong value; `lengths` are the values per row of a list column."""
    if wrong.any():
        index = int(np.argmax(wrong))
        row = index if lengths is None else int(_rows(lengths)[index])
        raise DataError(f"row {row}, column {name}: found {str(values[index])[:100]}, expected {expected}")

"""Store detections as small tables, so that they can be measured again, on other images or with other metrics, without the network.

A table has one row per detection: image_id, category_id, score, and what is compared. That is the box x, y, width, height in pixels of its
image; or the mask, as COCO's run lengths `counts` and the `height` and `width` of its image; or the keypoints x, y, confidence.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from yolor_ray.errors import DataError
from yolor_ray.evaluate.coco import ResultRow
from yolor_ray.evaluate.scorer import RESULT_FIELDS, IouType

DETECTIONS_FILE = "detections.parquet"
FILES = {"detect": DETECTIONS_FILE, "segment": "masks.parquet", "pose": "keypoints.parquet"}
"""File of each task whose detections COCO compares."""
IDS = ("image_id", "category_id")
BOX = ("x", "y", "width", "height")


def _schema(compared: dict[str, pa.DataType]) -> pa.Schema:
    types = dict.fromkeys(IDS, pa.int64()) | {"score": pa.float64()} | compared
    return pa.schema([pa.field(name, column_type, nullable=False) for name, column_type in types.items()])


SCHEMAS: dict[IouType, pa.Schema] = {
    "bbox": _schema(dict.fromkeys(BOX, pa.float64())),
    "segm": _schema({"height": pa.int64(), "width": pa.int64(), "counts": pa.string()}),
    "keypoints": _schema({"keypoints": pa.list_(pa.float64())}),
}


FLOATS: dict[IouType, tuple[str, ...]] = {"bbox": BOX, "segm": (), "keypoints": ("keypoints.list.element",)}
"""Columns of floats beside the score."""


def to_parquet(rows: list[ResultRow], iou_type: IouType = "bbox") -> bytes:
    """Return COCO result rows as a Parquet file, in the same order."""
    schema = SCHEMAS[iou_type]
    columns = [*([row[name] for row in rows] for name in (*IDS, "score")), *_compared_columns(rows, iou_type)]
    arrays = [pa.array(column, column_type) for column, column_type in zip(columns, schema.types, strict=True)]
    sink = pa.BufferOutputStream()
    # Numbers that were float32 end in zero bytes, which compress to nothing once the bytes of equal rank lie side by side.
    encodings = {"use_byte_stream_split": ["score", *FLOATS[iou_type]], "use_dictionary": list(IDS)}
    table = pa.Table.from_arrays(arrays, schema=schema)
    pq.write_table(table, sink, compression="zstd", write_statistics=False, write_page_checksum=True, **encodings)
    return sink.getvalue().to_pybytes()


def _compared_columns(rows: list[ResultRow], iou_type: IouType) -> list[Any]:
    """Return the columns behind the score: those of boxes, masks or keypoints."""
    values = [row[RESULT_FIELDS[iou_type]] for row in rows]
    if iou_type == "keypoints":
        return [values]
    if iou_type == "segm":
        return [*([mask["size"][axis] for mask in values] for axis in (0, 1)), [mask["counts"] for mask in values]]
    return list(np.array(values, np.float64).reshape(-1, len(BOX)).T)


def from_parquet(data: bytes, iou_type: IouType = "bbox") -> list[ResultRow]:
    """Return the result rows of a file that `to_parquet` made.

    Raises:
        DataError: the file is damaged, or no file of such detections.
    """
    ids = ("image_id", "category_id", "score")
    image_ids, category_ids, scores, *compared = (column.to_pylist() for column in _checked_table(data, iou_type).columns)
    if iou_type == "segm":
        values: list[Any] = [{"size": [height, width], "counts": counts} for height, width, counts in zip(*compared, strict=True)]
    elif iou_type == "keypoints":
        (values,) = compared
    else:
        values = [list(box) for box in zip(*compared, strict=True)]
    rows = zip(image_ids, category_ids, scores, values, strict=True)
    return [dict(zip((*ids, RESULT_FIELDS[iou_type]), row, strict=True)) for row in rows]


def read_boxes(data: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return image ids (D,), labels (D,), confidences (D,) and boxes_xyxy (D, 4) of a file of boxes that `to_parquet` made.

    Raises:
        DataError: the file is damaged, or no file of detections.
    """
    image_ids, labels, confidences, *sides = (column.to_numpy() for column in _checked_table(data, "bbox").columns)
    left, top, width, height = sides
    return image_ids, labels, confidences, np.stack((left, top, left + width, top + height), axis=1)


def _checked_table(data: bytes, iou_type: IouType) -> pa.Table:
    table, schema = _read_table(data), SCHEMAS[iou_type]
    if not table.schema.equals(schema):
        found, expected = (", ".join(f"{field.name} {field.type}" for field in item) for item in (table.schema, schema))
        raise DataError(f"detections: found a table of {found}; expected {expected}")
    return table


def _read_table(data: bytes) -> pa.Table:
    try:
        return pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"detections: found {len(data)} bytes that cannot be read, expected a Parquet file: {error}") from error

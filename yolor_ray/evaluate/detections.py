"""Store detections as a small table, so that they can be measured again, on other images or with other metrics, without the network.

The table has one row per detection: image_id, category_id, score, and the box x, y, width, height in pixels of its image.
"""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from yolor_ray.errors import DataError
from yolor_ray.evaluate.coco import ResultRow

DETECTIONS_FILE = "detections.parquet"
IDS = ("image_id", "category_id")
BOX = ("x", "y", "width", "height")
SCHEMA = pa.schema(
    [pa.field(name, pa.int64(), nullable=False) for name in IDS]
    + [pa.field(name, pa.float64(), nullable=False) for name in ("score", *BOX)]
)


def to_parquet(rows: list[ResultRow]) -> bytes:
    """Return COCO result rows of boxes as a Parquet file, in the same order."""
    boxes = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, len(BOX))
    columns = [*([row[name] for row in rows] for name in (*IDS, "score")), *boxes.T]
    arrays = [pa.array(column, column_type) for column, column_type in zip(columns, SCHEMA.types, strict=True)]
    sink = pa.BufferOutputStream()
    # Numbers that were float32 end in zero bytes, which compress to nothing once the bytes of equal rank lie side by side.
    encodings = {"use_byte_stream_split": ["score", *BOX], "use_dictionary": list(IDS)}
    table = pa.Table.from_arrays(arrays, schema=SCHEMA)
    pq.write_table(table, sink, compression="zstd", write_statistics=False, write_page_checksum=True, **encodings)
    return sink.getvalue().to_pybytes()


def from_parquet(data: bytes) -> list[ResultRow]:
    """Return the result rows of a file that `to_parquet` made.

    Raises:
        DataError: the file is damaged, or no file of detections.
    """
    image_ids, category_ids, scores, *sides = (column.to_numpy() for column in _checked_table(data).columns)
    numbers = zip(image_ids.tolist(), category_ids.tolist(), scores.tolist(), np.stack(sides, axis=1).tolist(), strict=True)
    return [
        {"image_id": image_id, "category_id": category_id, "score": score, "bbox": box} for image_id, category_id, score, box in numbers
    ]


def read_boxes(data: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return image ids (D,), labels (D,), confidences (D,) and boxes_xyxy (D, 4) of a file that `to_parquet` made.

    Raises:
        DataError: the file is damaged, or no file of detections.
    """
    image_ids, labels, confidences, *sides = (column.to_numpy() for column in _checked_table(data).columns)
    left, top, width, height = sides
    return image_ids, labels, confidences, np.stack((left, top, left + width, top + height), axis=1)


def _checked_table(data: bytes) -> pa.Table:
    table = _read_table(data)
    if not table.schema.equals(SCHEMA):
        found, expected = (", ".join(f"{field.name} {field.type}" for field in schema) for schema in (table.schema, SCHEMA))
        raise DataError(f"detections: found a table of {found}; expected {expected}")
    return table


def _read_table(data: bytes) -> pa.Table:
    try:
        return pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"detections: found {len(data)} bytes that cannot be read, expected a Parquet file: {error}") from error

"""Write and read the Parquet files of predictions: one row per image.

Legend: D detections, J keypoints of a detection's class, E numbers of an embedding.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from yolor_ray.errors import IntegrityError
from yolor_ray.inference.postprocess import ImageDetections
from yolor_ray.model.weights import WeightsInfo
from yolor_ray.predict.predictor import PredictedImage

FIELDS = [
    pa.field("name", pa.string(), nullable=False),
    pa.field("width", pa.int32(), nullable=False),
    pa.field("height", pa.int32(), nullable=False),
    pa.field("classes", pa.list_(pa.string()), nullable=False),
    pa.field("confidences", pa.list_(pa.float32()), nullable=False),
    pa.field("boxes_xyxy", pa.list_(pa.list_(pa.float32(), 4)), nullable=False),
]
"""Columns of every file: name and size of the image, and class name, confidence and box of each of D detections, best first."""
TASK_FIELDS = {
    "segment": pa.field("masks", pa.list_(pa.string()), nullable=False),
    "pose": pa.field("keypoints", pa.list_(pa.list_(pa.float32())), nullable=False),
    "embed": pa.field("embeddings", pa.list_(pa.list_(pa.float32())), nullable=False),
    "classify": pa.field("image_labels", pa.map_(pa.string(), pa.float32()), nullable=False),
}
"""Columns of tasks that the network has learned: run lengths (COCO's `counts`), 3J numbers and E numbers of each detection, and the
probability of each label of the image."""


def schema_of(info: WeightsInfo) -> pa.Schema:
    """Return the columns of the predictions of weights."""
    return pa.schema([*FIELDS, *(column for task, column in TASK_FIELDS.items() if task in info.tasks)])


def to_parquet(images: Sequence[PredictedImage], info: WeightsInfo) -> pa.Buffer:
    """Return predictions as a Parquet file."""
    schema = schema_of(info)
    rows = [_row(image, info) for image in images]
    table = pa.Table.from_arrays([pa.array([row[column.name] for row in rows], column.type) for column in schema], schema=schema)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def _row(image: PredictedImage, info: WeightsInfo) -> dict[str, Any]:
    found = image.detections
    labels = () if found.image_labels is None else zip(info.image_classes, found.image_labels.tolist(), strict=True)
    keypoints = () if found.keypoints is None else zip(found.keypoints, found.labels, strict=True)
    return {
        "name": image.name,
        "width": image.width,
        "height": image.height,
        "classes": [info.classes[label] for label in found.labels],
        "confidences": found.confidences.tolist(),
        "boxes_xyxy": found.boxes_xyxy.tolist(),
        "masks": [mask.decode("ascii") for mask in found.masks or ()],
        "keypoints": [points[info.keypoint_indices[label]].ravel().tolist() for points, label in keypoints],
        "embeddings": [] if found.embeddings is None else found.embeddings.tolist(),
        "image_labels": list(labels),
    }


def from_parquet(data: bytes, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Return the rows of a file of `to_parquet` as Python values by column, or some of their columns.

    Raises:
        IntegrityError: the file is damaged.

    """
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        rows: list[dict[str, Any]] = file.read(columns=columns, use_threads=False).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise IntegrityError(f"found {len(data)} bytes that cannot be read, expected a Parquet file of predictions: {error}") from error
    return rows


def detections_of(row: dict[str, Any], info: WeightsInfo) -> ImageDetections:
    """Return the detections of a row of `from_parquet`."""
    count = len(row["classes"])
    labels = np.array([info.classes.index(name) for name in row["classes"]], np.int64)
    keypoints = np.zeros((count, len(info.keypoint_names), 3))
    for points, label, numbers in zip(keypoints, labels, row.get("keypoints", ()), strict=False):
        points[info.keypoint_indices[label]] = np.reshape(numbers, (-1, 3))
    return ImageDetections(
        boxes_xyxy=np.array(row["boxes_xyxy"], np.float64).reshape(-1, 4),
        confidences=np.array(row["confidences"], np.float64),
        labels=labels,
        masks=tuple(mask.encode("ascii") for mask in row["masks"]) if "masks" in row else None,
        keypoints=keypoints if "keypoints" in row else None,
    )

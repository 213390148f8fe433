import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from yolor_ray.errors import DataError
from yolor_ray.evaluate import coco
from yolor_ray.evaluate.detections import SCHEMAS, from_parquet, to_parquet
from yolor_ray.inference.postprocess import ImageDetections


def _rows(count=2000):
    rng = np.random.default_rng(0)
    rows = []
    for image_id in range(5):
        boxes_xyxy = (rng.uniform(0, 640, (count // 5, 4)).astype(np.float32) / 3.0 + 1e-9).astype(np.float64)
        confidences = rng.random(count // 5, np.float32).astype(np.float64)
        rows += coco.make_result_rows(image_id, ImageDetections(boxes_xyxy, confidences, rng.integers(0, 80, count // 5)), 640, 640)
    return rows


def test_detections_are_restored_bit_for_bit_in_order():
    rows = _rows()[::-1]
    rows[7] |= {"score": 0.1, "bbox": [1 / 3, -0.0, 5e-324, 1e300]}
    restored = from_parquet(to_parquet(rows))
    assert repr([[row[name] for name in sorted(row)] for row in restored]) == repr([[row[name] for name in sorted(row)] for row in rows])


def test_an_empty_list_is_restored():
    for iou_type in SCHEMAS:
        assert from_parquet(to_parquet([], iou_type), iou_type) == []


def test_masks_and_keypoints_are_restored():
    ids = [{"image_id": image_id, "category_id": 3, "score": 0.1 * image_id} for image_id in (2, 1)]
    masks = [row | {"segmentation": {"size": [5, 7], "counts": counts}} for row, counts in zip(ids, ("0S1", "PPYo1\\"), strict=True)]
    keypoints = [row | {"keypoints": [1 / 3, row["score"], 0.5]} for row in ids]
    assert from_parquet(to_parquet(masks, "segm"), "segm") == masks
    assert from_parquet(to_parquet(keypoints, "keypoints"), "keypoints") == keypoints
    with pytest.raises(DataError, match=r"found a table of .* counts string; expected .* keypoints list"):
        from_parquet(to_parquet(masks, "segm"), "keypoints")


def test_the_file_takes_less_than_60_percent_of_the_numbers_bytes():
    rows = _rows()
    assert len(to_parquet(rows)) < len(rows) * (7 * 8) * 0.6


def test_other_parquet_readers_read_the_file():
    table = pq.read_table(io.BytesIO(to_parquet(_rows())))
    assert table.column_names == ["image_id", "category_id", "score", "x", "y", "width", "height"]
    assert table.num_rows == 2000


def test_a_damaged_file_is_refused():
    data = to_parquet(_rows())
    flipped = bytearray(data)
    flipped[len(data) // 3] ^= 1
    for damaged in (b"", b"PAR1", data[: len(data) // 2], bytes(flipped)):
        with pytest.raises(DataError, match=f"detections: found {len(damaged)} bytes that cannot be read, expected a Parquet file"):
            from_parquet(damaged)


def test_a_table_of_another_schema_is_refused():
    sink = io.BytesIO()
    pq.write_table(pa.table({"image_id": pa.array([1], pa.int32())}), sink)
    with pytest.raises(DataError, match=r"detections: found a table of image_id int32; expected image_id int64, category_id int64"):
        from_parquet(sink.getvalue())

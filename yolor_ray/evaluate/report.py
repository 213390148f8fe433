"""Gather what an evaluation leaves behind: numbers and detections for machines, and pictures for people."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from yolor_ray.evaluate.coco import Measured, Row
from yolor_ray.evaluate.detections import DETECTIONS_FILE, to_parquet
from yolor_ray.evaluate.plots import Picture, precision_recall_png, predictions_png


def report_files(measured: Measured, rows: list[Row], pictures: Sequence[Picture], summary: Mapping[str, Any]) -> dict[str, bytes]:
    """Return metrics.json, detections.parquet, precision_recall.png and predictions.png; `summary` says what was evaluated on what.

    In metrics.json a number is null where the data set has no object that it could be measured on.
    """
    names = list(measured.classes)
    classes = {name: _known(asdict(found)) for name, found in measured.classes.items()}
    content = {**summary, **_known(measured.metrics), "classes": classes}
    return {
        "metrics.json": json.dumps(content, indent=1, ensure_ascii=False).encode(),
        DETECTIONS_FILE: to_parquet(rows),
        "precision_recall.png": precision_recall_png(measured.precision50, measured.precision, names),
        "predictions.png": predictions_png(pictures, names),
    }


def _known(numbers: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if number < 0 else number for name, number in numbers.items()}

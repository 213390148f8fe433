"""Gather what an evaluation leaves behind: numbers and detections for machines, and pictures for people."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from yolor_ray.evaluate.detections import DETECTIONS_FILE, to_parquet
from yolor_ray.evaluate.examples import Picture
from yolor_ray.evaluate.metrics import EvalResult


def report_files(measured: EvalResult, pictures: Sequence[Picture], summary: Mapping[str, Any]) -> dict[str, bytes]:
    """Return metrics.json, detections.parquet, precision_recall.png and predictions.png; `summary` says what was evaluated on what.

    In metrics.json a number is null where the data set has nothing that it could be measured on.
    """
    # Here, as matplotlib takes a second to import, and most processes that can measure never draw.
    from yolor_ray.evaluate.examples_plot import predictions_png
    from yolor_ray.evaluate.precision_recall_plot import precision_recall_png

    boxes, names = measured.boxes, list(measured.boxes.classes)
    content = {**summary, **_known(measured.metrics), "classes": {name: _of_class(measured, name) for name in names}}
    if measured.labels is not None:
        content["image_classes"] = {name: _known(asdict(found)) for name, found in measured.labels.items()}
    return {
        "metrics.json": json.dumps(content, indent=1, ensure_ascii=False).encode(),
        DETECTIONS_FILE: to_parquet(measured.rows),
        "precision_recall.png": precision_recall_png(boxes.precision50, boxes.precision, names),
        "predictions.png": predictions_png(pictures, names),
    }


def _of_class(measured: EvalResult, name: str) -> dict[str, float | None]:
    """Return a class's numbers: those of its boxes, and AP and AP50 of its masks and keypoints where there are any."""
    others = {"segment": measured.masks, "pose": measured.keypoints}
    numbers = {f"{task}/{key}": getattr(one.classes[name], key) for task, one in others.items() if one for key in ("AP", "AP50")}
    return _known(asdict(measured.boxes.classes[name]) | numbers)


def _known(numbers: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if number < 0 else number for name, number in numbers.items()}

"""Files of an evaluation's report: metrics and detections for programs, example images for people."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from yolor_ray.evaluate.coco import IOU_TYPES, value_or
from yolor_ray.evaluate.detections import FILES, to_parquet
from yolor_ray.evaluate.examples import ExampleImage
from yolor_ray.evaluate.metrics import EvalResult
from yolor_ray.evaluate.page.embedding_map import EMBEDDINGS_FILE, embeddings_parquet


def report_files(result: EvalResult, examples: Sequence[ExampleImage], summary: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the files of a report by name; `summary` names weights and dataset.

    They are metrics.json, predictions.png, a table of the detections of each task that COCO compares, and with embeddings theirs.
    In metrics.json a number is null if the dataset has nothing to measure on.
    """
    # Imported here because matplotlib takes a second, and most processes that measure never draw.
    from yolor_ray.evaluate.examples_plot import predictions_png

    names = list(result.boxes.classes)
    content = {**summary, **_with_nulls(result.metrics), "classes": {name: _class_numbers(result, name) for name in names}}
    if result.labels is not None:
        content["image_classes"] = {name: _with_nulls(asdict(score)) for name, score in result.labels.items()}
    located = {EMBEDDINGS_FILE: embeddings_parquet(result.located)} if result.located else {}
    return {
        "metrics.json": json.dumps(content, indent=1, ensure_ascii=False).encode(),
        **{FILES[task]: to_parquet(rows, IOU_TYPES[task]) for task, rows in result.rows_by_task.items()},
        "predictions.png": predictions_png(examples, names),
        **located,
    }


def _class_numbers(result: EvalResult, name: str) -> dict[str, float | None]:
    """Return a class's numbers: those of its boxes, and AP and AP50 of its masks and keypoints where measured."""
    task_results = {"segment": result.masks, "pose": result.keypoints}
    numbers = {
        f"{task}/{key}": getattr(task_result.classes[name], key)
        for task, task_result in task_results.items()
        if task_result
        for key in ("AP", "AP50")
    }
    return _with_nulls(asdict(result.boxes.classes[name]) | numbers)


def _with_nulls(numbers: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value_or(number, None) for name, number in numbers.items()}

"""Write the model card of a finished run: `README.md` beside its weights."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from yolor_ray import __version__
from yolor_ray.data.shards.dataset import Dataset
from yolor_ray.evaluate.against.bootstrap import draw_resamples, half_width, metric_names, resampled_metrics
from yolor_ray.evaluate.coco import IOU_TYPES
from yolor_ray.evaluate.detections import FILES, from_parquet
from yolor_ray.evaluate.predict import make_task_truth, read_annotations
from yolor_ray.report import markdown
from yolor_ray.train.context import TrainContext

RESAMPLES = 100
SEED = 0


def model_card(context: TrainContext, report: Mapping[str, bytes], config: Mapping[str, Any]) -> bytes:
    """Return the card as Markdown: use, accuracy with intervals, classes with their best confidences, data, licence.

    Args:
        context: the run.
        report: `metrics.json` and the detections of each task of the best validation, by name.
        config: content of the weights' `config.json`.
    """
    numbers = json.loads(report["metrics.json"])
    tasks = ", ".join(config["network"]["tasks"])
    parts = [
        f"# {markdown.escape(config['name'])}",
        f"Weights of a YOLOR network for {tasks}, at {config['image_px']} px. yolor_ray {__version__} trained them.",
        "## Use",
        '```python\nimport yolor_ray as yr\n\ndetector = yr.Detector("URL of this folder")\nprint(detector("photo.jpg"))\n```',
        "## Accuracy",
        f"On the {context.val.images} images of the validation set. The interval is that of a bootstrap over these images.",
        _accuracy_table(numbers, _intervals(context.val, report)),
        "## Classes",
        _class_table(numbers["classes"]),
        "The best confidence is the threshold with the highest F1 score on the validation set. Prediction and serving use it by default.",
        "## Data",
        _data_table(context),
        "No image is in this folder.",
        "## Licence",
        "No licence is stated here. The licences of the training images may bind the weights.",
    ]
    return ("\n\n".join(parts) + "\n").encode()


def _intervals(dataset: Dataset, report: Mapping[str, bytes]) -> dict[str, float]:
    """Return half the width of the 95 % interval of each metric that is resampled; NaN where unknown."""
    records, halves = read_annotations(dataset), dict[str, float]()
    for task in [task for task, file in FILES.items() if file in report]:
        truth = make_task_truth(records, dataset.classes, task)
        if truth["images"]:
            draws = draw_resamples(len(truth["images"]), RESAMPLES, SEED)
            resampled = resampled_metrics(truth, from_parquet(report[FILES[task]], IOU_TYPES[task]), draws, IOU_TYPES[task])
            halves |= {name: half_width(values) for name, values in zip(metric_names(task), resampled.T, strict=True)}
    return halves


def _accuracy_table(numbers: Mapping[str, Any], intervals: Mapping[str, float]) -> str:
    rows = []
    for name, value in numbers.items():
        if not isinstance(value, float):
            continue
        half = intervals.get(name, np.nan)
        interval = f"{max(value - half, 0):.3f} to {min(value + half, 1):.3f}" if np.isfinite(half) else markdown.UNKNOWN
        rows.append((name, f"{value:.3f}", interval))
    return markdown.table(("metric", "value", "95 % interval"), rows)


def _class_table(classes: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        (markdown.escape(name), *(_number(score[key]) for key in ("AP", "AP50")), str(score["objects"]), _number(score["confidence"]))
        for name, score in classes.items()
    ]
    return markdown.table(("class", "AP", "AP50", "objects", "best confidence"), rows)


def _number(value: float | None) -> str:
    return markdown.UNKNOWN if value is None else f"{value:.3f}"


def _data_table(context: TrainContext) -> str:
    sets = {"training": context.train, "validation": context.val}
    rows = [(name, str(data.images), str(data.boxes), markdown.code(data.digest[:12])) for name, data in sets.items()]
    return markdown.table(("set", "images", "boxes", "hash of the content"), rows)

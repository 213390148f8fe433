"""Time the COCO scorer of evaluation and validation against pycocotools, on the same synthetic detections.

Legend: I images, D detections per image, K classes.
"""

import contextlib
import functools
import io
import logging
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from yolor_ray.config.benchmark import ScoringConfig
from yolor_ray.errors import ConfigError
from yolor_ray.evaluate import coco
from yolor_ray.inference.timing import median, speed_ratios, spread, time_interleaved
from yolor_ray.report.provenance import machine

logger = logging.getLogger(__name__)

IMAGE_PX = 640
OBJECTS = 7
"""Objects per image, about as many as in COCO."""
CROWD_SHARE = 0.01
NEAR_SHARE = 0.5
"""Share of the detections near an object and of its class."""


def scoring(config: ScoringConfig) -> dict[str, Any]:
    """Score the same detections by both scorers in turns, from COCO's JSON to COCO's table, and return seconds and the ratio of speeds.

    Raises:
        ConfigError: pycocotools is not installed.
    """
    reference = _reference_scorer()
    truth, rows = make_detections(config)
    tables: dict[str, list[float]] = {}
    functions = {
        "hotcoco": lambda: tables.update(hotcoco=list(coco.measure(truth, rows).metrics.values())),
        "pycocotools": lambda: tables.update(pycocotools=reference(truth, rows)),
    }
    before = machine()
    timed = time_interleaved(functions, config.rounds, repeat=False)
    ratios = speed_ratios(timed, "hotcoco", "pycocotools")
    seconds = {name: median(timed, name) for name in functions}
    logger.info("event=scored hotcoco_s=%.3g pycocotools_s=%.3g", seconds["hotcoco"], seconds["pycocotools"])
    return {
        "ratio": statistics.median(ratios),
        "ratio_spread": spread(ratios),
        "scoring_s": seconds,
        "largest_difference": float(np.abs(np.subtract(tables["hotcoco"], tables["pycocotools"])).max()),
        "AP": tables["hotcoco"][0],
        "settings": {"images": config.images, "detections": config.detections, "classes": config.classes, "rounds": config.rounds},
        "machine": before,
    }


def _reference_scorer() -> Callable[[dict[str, Any], list[coco.ResultRow]], list[float]]:
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ConfigError(
            "scoring: found no pycocotools, with which this benchmark compares; expected `pip install pycocotools`"
        ) from error
    return functools.partial(_score_by_pycocotools, COCO, COCOeval)


def _score_by_pycocotools(index: Any, evaluation: Any, truth: dict[str, Any], rows: list[coco.ResultRow]) -> list[float]:
    """Return the 12 numbers of COCO's table, by pycocotools' classes COCO and COCOeval."""
    with contextlib.redirect_stdout(io.StringIO()):
        annotated = index()
        annotated.dataset = truth
        annotated.createIndex()
        # pycocotools adds fields to the rows.
        scorer = evaluation(annotated, annotated.loadRes([dict(row) for row in rows]), "bbox")
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return [float(number) for number in scorer.stats]


def make_detections(config: ScoringConfig) -> tuple[dict[str, Any], list[coco.ResultRow]]:
    """Make COCO annotations and I x D results with a fixed seed: half of the detections lie near an object and have its class."""
    rng = np.random.default_rng(0)
    images, objects = config.images, config.images * OBJECTS
    boxes, labels = _random_boxes(rng, objects), rng.integers(config.classes, size=objects)
    crowds = rng.random(objects) < CROWD_SHARE
    annotations = [
        {"id": i + 1, "image_id": i // OBJECTS, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": int(crowd)}
        for i, (label, box, crowd) in enumerate(zip(labels.tolist(), boxes.tolist(), crowds.tolist(), strict=True))
    ]
    truth = {
        "images": [{"id": image, "width": IMAGE_PX, "height": IMAGE_PX} for image in range(images)],
        "categories": [{"id": label, "name": str(label)} for label in range(config.classes)],
        "annotations": annotations,
    }
    detections = images * config.detections
    own_images = np.repeat(np.arange(images), config.detections)
    nearest = own_images * OBJECTS + rng.integers(OBJECTS, size=detections)
    is_near = rng.random(detections) < NEAR_SHARE
    found = np.where(is_near[:, None], boxes[nearest] + rng.normal(0, 6, (detections, 4)), _random_boxes(rng, detections))
    found[:, 2:] = np.maximum(found[:, 2:], 1)
    classes = np.where(is_near, labels[nearest], rng.integers(config.classes, size=detections))
    columns = own_images.tolist(), classes.tolist(), rng.random(detections).tolist(), found.tolist()
    return truth, [
        {"image_id": image, "category_id": label, "score": score, "bbox": box} for image, label, score, box in zip(*columns, strict=True)
    ]


def _random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return boxes as x, y, width and height, (N, 4), of all three sizes of COCO."""
    return np.concatenate([rng.uniform(0, IMAGE_PX / 2, (count, 2)), rng.uniform(8, IMAGE_PX / 3, (count, 2))], axis=1)

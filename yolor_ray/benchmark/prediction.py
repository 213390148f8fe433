"""Compare `yolor-ray predict` with workers with the same engine in a loop of one process.

Both read, decode and predict the same images with the same cores, in turns. Only the workers write results.
"""

import contextlib
import itertools
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolor_ray.cluster.connect import start_ray
from yolor_ray.config import PredictConfig
from yolor_ray.config.benchmark import PredictionConfig
from yolor_ray.inference.timing import spread
from yolor_ray.io.storage import absolute
from yolor_ray.io.weights_url import absolute_weights
from yolor_ray.pack.scenes_url import SCENES_PREFIX, temporary_dataset_urls
from yolor_ray.predict.predictor import Predictor
from yolor_ray.predict.run import Task, predict_by_ray
from yolor_ray.predict.sources import Part, list_parts
from yolor_ray.report.provenance import available_cores, machine

logger = logging.getLogger(__name__)

MEMORY_EVERY_S = 2.0
"""Time between two readings of the memory, which take some milliseconds per process (s)."""


def prediction(config: PredictionConfig) -> dict[str, Any]:
    """Predict the images in a loop and by workers in turns, and return the rates, their ratio, the start of the workers and the memory.

    `ratio` is the rate of the whole job with workers, after Ray is up, relative to the loop; a median over rounds.
    """
    with contextlib.ExitStack() as stack:
        images = config.images
        if images.startswith(SCENES_PREFIX):
            images = stack.enter_context(temporary_dataset_urls(images))
        job = PredictConfig(
            weights=absolute_weights(config.weights),
            images=absolute(images),
            output=stack.enter_context(tempfile.TemporaryDirectory(prefix="yolor-predict-")),
            batch=config.batch,
            engine=config.engine,
            cluster=config.cluster,
        )
        parts = list_parts(job.images)
        start_ray(allow_unauthenticated=config.cluster.allow_unauthenticated)
        predictor = Predictor(job, config.cluster.compute_threads or available_cores())
        before = machine()
        rounds = [_measure_round(job, predictor, parts, config.passes, number) for number in range(1, config.rounds + 1)]
    ratios = [row["workers"] / row["loop"] for row in rounds]
    return {
        "ratio": statistics.median(ratios),
        "ratio_spread": spread(ratios),
        "images_per_s": {name: statistics.median(row[name] for row in rounds) for name in ("loop", "workers")},
        "first_result_s": statistics.median(row["first_result_s"] for row in rounds),
        "memory": {
            name: statistics.median(row[name] for row in rounds) for name in ("first_mb", "last_mb", "peak_mb", "mb_per_1000_images")
        },
        "rounds": rounds,
        "settings": {"passes": config.passes, "workers": config.cluster.workers, "batch": config.batch, "engine": config.engine},
        "machine": before,
    }


def _measure_round(job: PredictConfig, predictor: Predictor, parts: Sequence[Part], passes: int, number: int) -> dict[str, float]:
    tasks: list[Task] = list(zip(itertools.count(), map(str, itertools.count()), [*parts] * passes, strict=False))
    started = time.perf_counter()
    images = sum(1 for _, _, part in tasks for _ in predictor.predict(part.read()))
    row = {"images": float(images), "loop": images / (time.perf_counter() - started), **_measure_workers(job, tasks)}
    logger.info("event=round number=%d %s", number, " ".join(f"{name}={value:.4g}" for name, value in row.items()))
    return row


def _measure_workers(job: PredictConfig, tasks: Sequence[Task]) -> dict[str, float]:
    """Return the rate of a job with workers in images/s, its time to the first result, and the memory from the first result on."""
    started, last_reading = time.perf_counter(), -MEMORY_EVERY_S
    first_s = elapsed = 0.0
    readings: list[tuple[int, float]] = []
    done = 0
    for result in predict_by_ray(job, tasks):
        done += result.images + len(result.faults)
        elapsed = time.perf_counter() - started
        first_s = first_s or elapsed
        if elapsed - last_reading >= MEMORY_EVERY_S:
            readings.append((done, _memory_mb()))
            last_reading = elapsed
    return {
        "workers": done / elapsed,
        "first_result_s": first_s,
        "first_mb": readings[0][1],
        "last_mb": readings[-1][1],
        "peak_mb": max(memory for _, memory in readings),
        "mb_per_1000_images": _growth(readings),
    }


def _growth(readings: Sequence[tuple[int, float]]) -> float:
    """Return the slope of the memory in the second half of the images, MB per 1000 images; the first half fills caches. 0 if too short."""
    later = [reading for reading in readings if reading[0] >= readings[-1][0] / 2]
    if len(later) < 3:
        return 0.0
    images, memory = np.array(later, np.float64).T
    return float(np.polyfit(images / 1000, memory, 1)[0])


def _memory_mb() -> float:
    """Return the memory of this process and all below it, with each shared page counted once, MB."""
    return sum(map(_process_mb, _descendants()))


def _descendants() -> Iterator[int]:
    """Yield the ids of this process and of all below it; on a cluster that runs already, workers are not among them."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name of the program, in brackets, may have spaces.
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    pending = [int(Path("/proc/self").resolve().name)]
    while pending:
        process = pending.pop()
        yield process
        pending += children.get(process, [])


def _process_mb(process: int) -> float:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0

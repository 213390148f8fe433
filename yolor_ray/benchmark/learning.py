"""Measure AP by minute of training within a budget of minutes, on one core or one GPU, over several seeds.

Schedules follow from the number of epochs. A calibration run of the same settings therefore measures the speed first, and the number of
epochs that fills the budget follows from the speed. The folder run.storage/run.name holds the calibration run, a run for each seed, and
the report. The same command resumes a benchmark, and keeps its number of epochs, because the calibration run is finished then.
"""

import dataclasses
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from yolor_ray.benchmark.curves import ComparedCurves, Curve, CurvePoint, mean_curve, read_curves
from yolor_ray.benchmark.learning_report import REPORT_FILE, LearningResult, learning_files
from yolor_ray.config import ClusterConfig, TrainConfig
from yolor_ray.config.benchmark import LearningConfig
from yolor_ray.data.shards.dataset import Dataset
from yolor_ray.errors import check
from yolor_ray.evaluate.coco import value_or
from yolor_ray.io import storage
from yolor_ray.report.provenance import available_cores, command, commit, machine
from yolor_ray.train.checkpoint.checkpoint import complete_checkpoints
from yolor_ray.train.datasets.opening import open_datasets
from yolor_ray.train.run import train
from yolor_ray.train.run_log import METRICS_FILE, read_metrics
from yolor_ray.train.settings_lock import BENCHMARK_FILE, freed_on_failure, lock_settings
from yolor_ray.train.warm_start import resolve_pretrained

logger = logging.getLogger(__name__)

CALIBRATION = "calibration"
"""Name of the calibration run."""
CALIBRATION_EPOCHS = 3
"""Epochs of the calibration run; the first one is slower and does not count."""
VALIDATIONS = 10
"""Number of validations of a run, approximately."""
MUTABLE_SETTINGS = ("train.run.storage", "train.run.name", "train.run.checkpoint_")
"""Prefixes of the settings that a resumed benchmark may change. The cluster's settings are no such settings: they change the speed."""


def learning(config: LearningConfig) -> dict[str, Any]:
    """Train every seed for the budget, or resume the benchmark of that name, write its report, and return the accuracy at the end.

    Raises:
        ConfigError: the budget is shorter than an epoch, or the folder has a benchmark with other settings.
        DataError: the file of others' curves is not as expected.

    """
    compared = read_curves(config.compare) if config.compare else ComparedCurves()
    train_set, val_set = open_datasets(config.train)
    base = replace(config.train, data=replace(config.train.data, train=train_set.url, val=val_set.url))
    folder = storage.absolute(storage.join(base.run.storage, base.run.name))
    settings = {"kind": "learning", "minutes": config.minutes, "train": dataclasses.asdict(base)}
    with freed_on_failure(folder, (BENCHMARK_FILE,), lambda: _has_trained(folder)), _cores(base.cluster):
        lock_settings(folder, BENCHMARK_FILE, settings, mutable=MUTABLE_SETTINGS, defaults={"train": dataclasses.asdict(TrainConfig())})
        before = machine()
        epochs = choose_epochs(config.minutes, train_set.images, _measure_speed(base, folder))
        curves = [_train_seed(config, base, folder, epochs, seed) for seed in range(base.run.seed, base.run.seed + config.seeds)]
    described = {"budget_minutes": config.minutes, **_settings(base, train_set, val_set, epochs)}
    provenance = {"command": command(), "commit": commit(), **before}
    result = LearningResult(config.minutes, tuple(curves), compared, {**described, **provenance})
    for name, data in learning_files(result).items():
        storage.write_bytes(storage.join(folder, name), data)
    report = storage.join(folder, REPORT_FILE)
    logger.info("event=learning_done report=%s", report)
    return {"report": report, **_numbers(curves, folder), "settings": described, "machine": before}


def _has_trained(folder: str) -> bool:
    """Return True if the calibration run of the benchmark has trained an epoch or written a checkpoint."""
    run = storage.join(folder, CALIBRATION)
    return storage.exists(storage.join(run, METRICS_FILE)) or bool(complete_checkpoints(run))


@contextmanager
def _cores(cluster: ClusterConfig) -> Iterator[None]:
    """Restrict this process to as many cores as its compute threads; the threads that decode images share these cores.

    A run on a GPU, and a run with 0 compute threads, takes all cores.
    """
    torch.set_num_threads(cluster.compute_threads or available_cores())
    if cluster.gpu or not cluster.compute_threads or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    # Threads that start later inherit the cores of this thread.
    os.sched_setaffinity(0, sorted(before)[: cluster.compute_threads])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _measure_speed(base: TrainConfig, folder: str) -> float:
    """Return the speed of training, images/s, by a short run in the benchmark's folder."""
    # Epochs without mosaic are faster.
    augment = replace(base.augment, close_mosaic_epochs=0)
    optim = replace(base.optim, epochs=CALIBRATION_EPOCHS)
    train(replace(base, augment=augment, optim=optim, run=replace(base.run, storage=folder, name=CALIBRATION)))
    rows = read_metrics(storage.join(folder, CALIBRATION))[1:]
    speed = sum(row["records"] for row in rows) / sum(_epoch_s(row) for row in rows)
    logger.info("event=calibrated images_per_s=%.2f", speed)
    return speed


def choose_epochs(minutes: float, images: int, images_per_s: float) -> int:
    """Return the number of epochs that fills the budget best.

    Raises:
        ConfigError: an epoch takes longer than the budget.

    """
    epoch_minutes = images / images_per_s / 60
    expected = f"{epoch_minutes:.2g} or more: that is one epoch of {images} images at {images_per_s:.3g} images/s"
    check(minutes >= epoch_minutes, "minutes", minutes, expected)
    return round(minutes / epoch_minutes)


def _train_seed(config: LearningConfig, base: TrainConfig, folder: str, epochs: int, seed: int) -> Curve:
    """Train a seed, and return its curve."""
    name = f"seed-{seed}"
    run = replace(base.run, storage=folder, name=name, seed=seed, validate_epochs=max(round(epochs / VALIDATIONS), 1))
    train(replace(base, optim=replace(base.optim, epochs=epochs), run=run))
    curve = make_curve(config.curve, seed, read_metrics(storage.join(folder, name)))
    logger.info("event=seed_done seed=%d minutes=%.2f AP=%.4f", seed, curve.points[-1].minute, curve.points[-1].AP)
    return curve


def make_curve(name: str, seed: int, rows: Sequence[Mapping[str, Any]]) -> Curve:
    """Return the curve of a run from the rows of its `metrics.jsonl`."""
    minutes = np.cumsum([_epoch_s(row) / 60 for row in rows]).tolist()
    points = [
        CurvePoint(minute, value_or(row["AP"], np.nan), value_or(row["AP50"], np.nan), row["epoch"], row["images_per_s"])
        for minute, row in zip(minutes, rows, strict=True)
        if "AP" in row
    ]
    return Curve(name, tuple(points), seed)


def _epoch_s(row: Mapping[str, Any]) -> float:
    """Return the training time of a whole epoch: in an epoch that was resumed, `seconds` and speed are those of its last part."""
    return float(row["records"] / row["images_per_s"])


def _settings(base: TrainConfig, train_set: Dataset, val_set: Dataset, epochs: int) -> dict[str, Any]:
    """Return the description of all runs for the report."""
    return {
        "train": f"{train_set.url}, {train_set.images} images",
        "val": f"{val_set.url}, {val_set.images} images",
        "image_px": base.data.image_px,
        "epochs": epochs,
        "batch": base.optim.batch,
        "pretrained": resolve_pretrained(base.optim, base.network) or "none",
        "teacher": base.optim.teacher or "none",
        "device": "one GPU" if base.cluster.gpu else "CPU",
        "decode_threads": base.data.decode_threads,
    }


def _numbers(curves: Sequence[Curve], folder: str) -> dict[str, Any]:
    """Return the accuracy after the last epoch, the measured minutes, and the speed over all seeds."""
    last = mean_curve(curves)[-1]
    rows = [row for curve in curves for row in read_metrics(storage.join(folder, f"seed-{curve.seed}"))]
    return {
        "minutes": last.minute,
        "epochs": last.epoch,
        "seeds": len(curves),
        "AP": last.AP.mean,
        "AP_low": last.AP.low,
        "AP_high": last.AP.high,
        "AP50": last.AP50.mean,
        "images_per_s": sum(row["records"] for row in rows) / sum(_epoch_s(row) for row in rows),
    }

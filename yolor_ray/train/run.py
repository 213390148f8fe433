"""Training job: prepare datasets, anchors and the run's folder, start the workers, publish the best weights."""

import dataclasses
import json
import logging
import math
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray.train

from yolor_ray.cluster.block_source import direct_source
from yolor_ray.cluster.stop_signal import ProcessStopSignal, StopSignal, never_stop
from yolor_ray.config import TrainConfig
from yolor_ray.data.loading.loader import Source
from yolor_ray.data.shards.dataset import Dataset
from yolor_ray.errors import DataError, Preempted
from yolor_ray.evaluate.detections import FILES
from yolor_ray.io import manifest, storage
from yolor_ray.io.weights_url import CARD_FILE, WEIGHTS_FOLDER, absolute_weights
from yolor_ray.model.weights import CONFIG_FILE, TENSORS_FILE, load_weights
from yolor_ray.pack.scenes_url import SCENES_PREFIX
from yolor_ray.train.anchors import MAX_BOXES, best_possible_recall, fit_anchors, sample_sides
from yolor_ray.train.checkpoint.checkpoint import complete_checkpoints, newest_checkpoint
from yolor_ray.train.context import Report, TrainContext
from yolor_ray.train.datasets.boxes import MEASURED_BOXES, check_sides, check_teacher, read_box_sides, warn_of_classes_without_boxes
from yolor_ray.train.datasets.columns import read_columns
from yolor_ray.train.datasets.opening import open_datasets, refuse_shared_images
from yolor_ray.train.elastic.worker_group import run_in_process, run_on_workers
from yolor_ray.train.loggers.follower import LOGGERS_FILE, check_loggers, logged
from yolor_ray.train.loop import TrainOutcome
from yolor_ray.train.losses.class_balance import balanced_weights
from yolor_ray.train.optim.recipe import resolve
from yolor_ray.train.progress.model_card import model_card
from yolor_ray.train.progress.run_page import REPORT_FOLDER, publish_run_page
from yolor_ray.train.settings_lock import RUN_FILE, freed_on_failure, lock_settings
from yolor_ray.train.warm_start import pretrained_anchors, resolve_pretrained

logger = logging.getLogger(__name__)

MUTABLE_SETTINGS = (
    *("cluster.", "run.storage", "run.name", "run.checkpoint_", "run.validate_epochs", "run.loggers"),
    *("data.decode_threads", "data.allow_shared_images"),
)
"""Prefixes of the settings that a resumed run may change, because they do not change the trained weights."""
MIN_RECALL = 0.98
"""Best possible recall under which anchors are fitted anew, and a warning is logged."""


def train(
    config: TrainConfig,
    *,
    source: Source | None = None,
    report: Report | None = None,
    callbacks: Sequence[ray.train.UserCallback] = (),
    stop_signal: StopSignal = never_stop,
) -> dict[str, Any]:
    """Train a run, or resume the run of that storage and name, and return `run`, `weights` and `metrics`.

    A finished run returns its result at once.

    Args:
        config: settings of the run.
        source: encoded row groups of the training set, if the caller holds them already.
        report: called with the metrics of each validation before the last, when this process trains; again after a restart.
        callbacks: receive the same reports when workers of a cluster train.
        stop_signal: one more reason to stop, beside SIGTERM, SIGINT and SIGHUP.

    Raises:
        Preempted: a stop signal stopped training after a checkpoint.

    """
    check_loggers(config.run.loggers)
    run = storage.absolute(storage.join(config.run.storage, config.run.name))
    weights = storage.join(run, WEIGHTS_FOLDER)
    files = RUN_FILE, LOGGERS_FILE
    with freed_on_failure(run, files, lambda: manifest.is_published(weights) or bool(complete_checkpoints(run))):
        settings, defaults = dataclasses.asdict(config), dataclasses.asdict(TrainConfig())
        lock_settings(run, RUN_FILE, settings, mutable=MUTABLE_SETTINGS, defaults=defaults)
        context = None if manifest.is_published(weights) else prepare(config, run)
        # A resumed run has compared the images when it started.
        if context and not complete_checkpoints(run):
            refuse_shared_images(config, context.train, context.val)
        with logged(config, run):
            if context:
                _train(context, source, report, callbacks, ProcessStopSignal(stop_signal))
                publish_run_page(context)
                _publish_best(context)
    _, info = load_weights(weights)
    report_folder = storage.join(run, REPORT_FOLDER)
    logger.info("event=done report=%s weights=%s next='yolor-ray serve --weights %s'", report_folder, weights, shlex.quote(weights))
    return {"run": run, "weights": weights, "metrics": info.metrics}


def _train(
    context: TrainContext,
    source: Source | None,
    report: Report | None,
    callbacks: Sequence[ray.train.UserCallback],
    stop_signal: ProcessStopSignal,
) -> None:
    """Train to the end in this process or on workers; raise Preempted after a stop signal."""
    if context.config.cluster.worker_range[1] == 0:
        context = dataclasses.replace(context, source=source or context.source)
        outcome = run_in_process(context, report=report, stop_signal=stop_signal)
    else:
        outcome = run_on_workers(context, source=source, callbacks=callbacks, stop_signal=stop_signal)
    if outcome is TrainOutcome.STOPPED:
        message = f"{context.run}: {stop_signal()} ended training; the same command resumes from the newest checkpoint"
        raise Preempted(message, stop_signal())


def prepare(config: TrainConfig, run: str) -> TrainContext:
    """Open and check the datasets, and choose the anchors and the settings that follow from the number of updates."""
    train_set, val_set = open_datasets(config)
    # The checkpoint of a resumed run holds the anchors, so that the pretrained weights may be gone by then.
    resumes = bool(complete_checkpoints(run))
    if not resumes:
        _note_data(config, train_set)
    pretrained = resolve_pretrained(config.optim, config.network)
    teacher = absolute_weights(config.optim.teacher)
    most_boxes = MAX_BOXES if config.network.head == "anchors" else MEASURED_BOXES
    # The log of a teacher counts all images.
    sides, without_boxes = read_box_sides(train_set, config.data.image_px, most_boxes=None if teacher else most_boxes)
    if teacher:
        check_teacher(teacher, train_set, config.data.image_px, len(sides), without_boxes)
    if len(sides) or not teacher:
        check_sides(sides, train_set, config.data.image_px)
    # Read for each head, because weights that do not fit are refused here, before workers start.
    anchors = pretrained_anchors(pretrained, config.network) if pretrained and not resumes else None
    if config.network.head == "anchors":
        anchors = _choose_anchors(config, sides, anchors)
    identities = _read_identities(train_set) if "embed" in config.network.tasks else np.zeros(0, np.int64)
    if "embed" in config.network.tasks and len(identities) == 0:
        raise DataError(f"{train_set.url}: found no identity, expected some for network.tasks: embed")
    class_weights = _choose_class_weights(train_set) if config.loss.class_balance else None
    config = resolve(config, math.ceil(train_set.images / config.optim.batch))
    box_px = float(np.median(sides.min(axis=1))) if len(sides) else 0.0
    source = direct_source(train_set)
    return TrainContext(config, run, train_set, val_set, anchors, source, identities, pretrained, class_weights, teacher, box_px)


def _note_data(config: TrainConfig, train_set: Dataset) -> None:
    """Log a training on built-in scenes, and classes that nothing teaches."""
    if config.data.train.startswith(SCENES_PREFIX):
        advice = "--data.train URL trains on your photos"
        logger.warning("event=built_in_scenes data=%s reason='drawn scenes, no photos' advice='%s'", config.data.train, advice)
    if "detect" in config.network.tasks and not config.optim.teacher:
        warn_of_classes_without_boxes(train_set)


def _read_identities(dataset: Dataset) -> np.ndarray:
    """Return the ids of a dataset's known individuals, ascending."""
    columns = [table["identities"].combine_chunks() for table in read_columns(dataset, ["identities"], dataset.row_groups)]
    identities = np.unique(np.concatenate([column.flatten().to_numpy(zero_copy_only=False) for column in columns]))
    return identities[identities >= 0].astype(np.int64)


def _choose_class_weights(dataset: Dataset) -> np.ndarray:
    """Return the (K,) weights of the classes by their numbers of boxes, without crowd regions, which training ignores."""
    boxes = np.zeros(len(dataset.classes), np.int64)
    for table in read_columns(dataset, ["labels", "crowd"], dataset.row_groups):
        labels, crowd = (table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False) for name in ("labels", "crowd"))
        boxes += np.bincount(labels[~crowd], minlength=len(boxes))
    weights = balanced_weights(boxes)
    heaviest, lightest = (f"{dataset.classes[label]} {weights[label]:.2f}" for label in (weights.argmax(), weights.argmin()))
    logger.info("event=class_weights heaviest='%s' lightest='%s' without_boxes=%d", heaviest, lightest, (boxes == 0).sum())
    return weights


def _choose_anchors(config: TrainConfig, sides: np.ndarray, anchors: np.ndarray | None) -> np.ndarray:
    """Return the pretrained anchors if they cover a sample of the training boxes `sides` (N, 2), else fit new ones: (L, A, 2) pixels."""
    network, boxes = config.network, len(sides)
    sides = sample_sides(sides, config.run.seed)
    origin = "pretrained"
    if anchors is None or best_possible_recall(sides, anchors, anchor_ratio=config.loss.anchor_ratio) < MIN_RECALL:
        anchors = fit_anchors(sides, network.levels, network.anchors_per_level, strides=network.strides, seed=config.run.seed)
        origin = "fitted"
    recall = best_possible_recall(sides, anchors, anchor_ratio=config.loss.anchor_ratio)
    sizes = " ".join(f"{width:.0f},{height:.0f}" for width, height in anchors.reshape(-1, 2))
    logger.info("event=anchors origin=%s best_possible_recall=%.4f anchors='%s' boxes=%d", origin, recall, sizes, boxes)
    if recall < MIN_RECALL:
        logger.warning("event=low_recall best_possible_recall=%.4f expected=%.2f reason='some boxes match no anchor'", recall, MIN_RECALL)
    return anchors


def _publish_best(context: TrainContext) -> None:
    """Copy the best weights to the run's folder `weights`, with a model card."""
    run = context.run
    newest = newest_checkpoint(run)
    if newest is None:
        raise DataError(f"{run}: found no checkpoint after training, expected one")
    best = storage.join(run, newest[1]["best"])
    files = manifest.read_published(best, (CONFIG_FILE, TENSORS_FILE))
    folder = storage.join(run, REPORT_FOLDER)
    names = ["metrics.json", *(manifest.read_manifest(folder).keys() & FILES.values())]
    report = manifest.read_published(folder, names)
    card = model_card(context, report, json.loads(files[CONFIG_FILE]))
    manifest.publish(storage.join(run, WEIGHTS_FOLDER), {**files, CARD_FILE: card})

"""Training job: prepare datasets, anchors and the run's folder, start the workers, publish the best weights."""

import dataclasses
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray.train
import torch

from yolor_ray.cluster.block_source import direct_source
from yolor_ray.config import TrainConfig
from yolor_ray.data.augment.geometry import MIN_SIDE_PX
from yolor_ray.data.loading.loader import Source
from yolor_ray.data.shards import union
from yolor_ray.data.shards.dataset import Dataset, read_row_group
from yolor_ray.errors import DataError, Preempted
from yolor_ray.io import manifest, storage
from yolor_ray.model.weights import CONFIG_FILE, TENSORS_FILE, WeightsInfo, load_weights
from yolor_ray.pack.scenes_url import VALIDATION_SEED, resolve_dataset_urls
from yolor_ray.train.anchors import best_possible_recall, fit_anchors
from yolor_ray.train.checkpoint.checkpoint import complete_checkpoints, newest_checkpoint
from yolor_ray.train.context import Report, TrainContext
from yolor_ray.train.elastic.worker_group import run_in_process, run_on_workers
from yolor_ray.train.loop import TrainOutcome
from yolor_ray.train.losses.class_balance import balanced_weights
from yolor_ray.train.optim.recipe import resolve
from yolor_ray.train.settings_lock import RUN_FILE, lock_settings
from yolor_ray.train.teacher import load_teacher
from yolor_ray.train.warm_start import pretrained_anchors, resolve_pretrained

logger = logging.getLogger(__name__)

MUTABLE_SETTINGS = ("cluster.", "run.storage", "run.name", "run.checkpoint_", "run.validate_epochs", "data.decode_threads")
"""Prefixes of the settings that a resumed run may change, because they do not change the trained weights."""
MIN_RECALL = 0.98
"""Best possible recall under which anchors are fitted anew, and a warning is logged."""
TRAINING_SEED = 0


def train(
    config: TrainConfig,
    *,
    source: Source | None = None,
    report: Report | None = None,
    callbacks: Sequence[ray.train.UserCallback] = (),
) -> dict[str, Any]:
    """Train a run, or resume the run of that storage and name, and return `run`, `weights` and `metrics`.

    A finished run returns its result at once.

    Args:
        config: settings of the run.
        source: encoded row groups of the training set, if the caller holds them already.
        report: called with the metrics of each validation before the last, when this process trains; after a restart, earlier
            validations are reported again.
        callbacks: receive the same reports when workers of a cluster train.

    Raises:
        Preempted: SIGTERM stopped training after a checkpoint.

    """
    run = storage.absolute(storage.join(config.run.storage, config.run.name))
    settings, defaults = dataclasses.asdict(config), dataclasses.asdict(TrainConfig())
    lock_settings(run, RUN_FILE, settings, mutable=MUTABLE_SETTINGS, defaults=defaults)
    weights = storage.join(run, "weights")
    if not manifest.is_published(weights):
        context = prepare(config, run)
        if config.cluster.worker_range[1] == 0:
            outcome = run_in_process(dataclasses.replace(context, source=source or context.source), report=report)
        else:
            outcome = run_on_workers(context, source=source, callbacks=callbacks)
        if outcome is TrainOutcome.STOPPED:
            raise Preempted(f"{run}: a stop signal ended training; the same command resumes from the newest checkpoint")
        _publish_best(run)
    _, info = load_weights(weights)
    logger.info("event=done report=%s next='python jobs/serve.py --weights %s'", storage.join(run, "report"), weights)
    return {"run": run, "weights": weights, "metrics": info.metrics}


def prepare(config: TrainConfig, run: str) -> TrainContext:
    """Open the datasets, and choose the anchors and the settings that follow from the number of updates."""
    train_set, val_set = open_datasets(config)
    pretrained = resolve_pretrained(config.optim, config.network)
    teacher = storage.absolute(config.optim.teacher) if config.optim.teacher else ""
    sides, without_boxes = _read_box_sides(train_set, config.data.image_px)
    if teacher:
        _check_teacher(teacher, train_set, config.data.image_px, len(sides), without_boxes)
    if len(sides) or not teacher:
        _check_sides(sides, train_set, config.data.image_px)
    # The checkpoint of a resumed run holds the anchors, so that the pretrained weights may be gone by then.
    resumes = bool(complete_checkpoints(run))
    anchors = _choose_anchors(config, sides, "" if resumes else pretrained) if config.network.head == "anchors" else None
    identities = _read_identities(train_set) if "embed" in config.network.tasks else np.zeros(0, np.int64)
    if "embed" in config.network.tasks and len(identities) == 0:
        raise DataError(f"{train_set.url}: found no identity, expected some for network.tasks: embed")
    class_weights = _choose_class_weights(train_set) if config.loss.class_balance else None
    config = resolve(config, math.ceil(train_set.images / config.optim.batch))
    return TrainContext(config, run, train_set, val_set, anchors, direct_source(train_set), identities, pretrained, class_weights, teacher)


def _read_identities(dataset: Dataset) -> np.ndarray:
    """Return the ids of a dataset's known individuals, ascending."""
    columns = [read_row_group(dataset, group, ["identities"])["identities"] for group in dataset.row_groups]
    identities = np.unique(np.concatenate([column.combine_chunks().flatten().to_numpy(zero_copy_only=False) for column in columns]))
    return identities[identities >= 0].astype(np.int64)


def _choose_class_weights(dataset: Dataset) -> np.ndarray:
    """Return the (K,) weights of the classes by their numbers of boxes, without crowd regions, which training ignores."""
    boxes = np.zeros(len(dataset.classes), np.int64)
    for group in dataset.row_groups:
        table = read_row_group(dataset, group, ["labels", "crowd"])
        labels, crowd = (table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False) for name in ("labels", "crowd"))
        boxes += np.bincount(labels[~crowd], minlength=len(boxes))
    weights = balanced_weights(boxes)
    heaviest, lightest = (f"{dataset.classes[label]} {weights[label]:.2f}" for label in (weights.argmax(), weights.argmin()))
    logger.info("event=class_weights heaviest='%s' lightest='%s' without_boxes=%d", heaviest, lightest, (boxes == 0).sum())
    return weights


def open_datasets(config: TrainConfig) -> tuple[Dataset, Dataset]:
    """Return the training set, and the validation set relabelled to its names; built-in scenes are packed first.

    Raises:
        DataError: the validation set has names that the training set lacks, or a task has no annotations in the training set; a teacher
            stands in for the annotations of detect.

    """
    scenes_folder = storage.join(config.run.storage, "scenes")
    train_set = union.open_datasets(resolve_dataset_urls(config.data.train, scenes_folder, TRAINING_SEED))
    tasks = config.network.tasks
    # Names of tasks that the network lacks may differ.
    image_classes = train_set.image_classes if "classify" in tasks else ()
    keypoint_names = train_set.keypoint_names if "pose" in tasks else ()
    names = WeightsInfo("", train_set.classes, config.data.image_px, image_classes=image_classes, keypoint_names=keypoint_names)
    val_urls = resolve_dataset_urls(config.data.val, scenes_folder, VALIDATION_SEED)
    val_set = union.relabel_to(union.open_datasets(val_urls), names)
    has_no_names = {"classify": not train_set.image_classes, "pose": not train_set.keypoint_names}
    learnable = {*train_set.tasks, "detect"} if config.optim.teacher else set(train_set.tasks)
    missing = [task for task in tasks if task not in learnable or has_no_names.get(task)]
    if missing:
        annotated = f"found annotations for {', '.join(train_set.tasks) or 'no task'}"
        other_way = ", or optim.teacher for detect" if "detect" in missing else ""
        raise DataError(f"{train_set.url}: {annotated}, expected some for network.tasks: {', '.join(missing)} too{other_way}")
    return train_set, val_set


def _choose_anchors(config: TrainConfig, sides: np.ndarray, pretrained: str) -> np.ndarray:
    """Return the pretrained anchors if they cover the training boxes `sides` (N, 2), else fit new ones: (L, A, 2) pixels."""
    network = config.network
    anchors = pretrained_anchors(pretrained, network) if pretrained else None
    origin = "pretrained"
    if anchors is None or best_possible_recall(sides, anchors, anchor_ratio=config.loss.anchor_ratio) < MIN_RECALL:
        anchors = fit_anchors(sides, network.levels, network.anchors_per_level, strides=network.strides, seed=config.run.seed)
        origin = "fitted"
    recall = best_possible_recall(sides, anchors, anchor_ratio=config.loss.anchor_ratio)
    sizes = " ".join(f"{width:.0f},{height:.0f}" for width, height in anchors.reshape(-1, 2))
    logger.info("event=anchors origin=%s best_possible_recall=%.4f anchors='%s' boxes=%d", origin, recall, sizes, len(sides))
    if recall < MIN_RECALL:
        logger.warning("event=low_recall best_possible_recall=%.4f expected=%.2f reason='some boxes match no anchor'", recall, MIN_RECALL)
    return anchors


def _read_box_sides(dataset: Dataset, image_px: int) -> tuple[np.ndarray, int]:
    """Return the (N, 2) widths and heights of all boxes in pixels of the network input, and the number of images not annotated for detect.

    Crowd regions are not learned.
    """
    sides, without_boxes = [np.zeros((0, 2), np.float32)], 0
    for group in dataset.row_groups:
        table = read_row_group(dataset, group, ["width", "height", "boxes_xyxy", "crowd", "tasks"])
        for width, height, boxes, crowd, tasks in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
            corners = np.asarray(boxes, np.float32).reshape(-1, 4)[~np.asarray(crowd, np.bool_)]
            sides.append((corners[:, 2:] - corners[:, :2]) * (image_px / max(width, height)))
            without_boxes += "detect" not in tasks
    return np.concatenate(sides), without_boxes


def _check_teacher(url: str, dataset: Dataset, image_px: int, boxes: int, without_boxes: int) -> None:
    """Refuse a teacher of other classes, and a training set whose classes have neither boxes nor a teacher.

    Args:
        url: weights of the teacher.
        dataset: training set.
        image_px: side of the network input, pixels.
        boxes: boxes to learn in the training set.
        without_boxes: images that are not annotated for detect, which the teacher annotates.

    Raises:
        DataError: there is nothing to learn, or a class that nothing teaches.

    """
    teacher = load_teacher(url, dataset.classes, image_px, torch.device("cpu"))
    unknown = [name for label, name in enumerate(dataset.classes) if label not in teacher.labels.tolist()]
    if not boxes and not without_boxes:
        expected = "expected boxes of single objects, or images that are not annotated for detect for the teacher"
        raise DataError(f"{dataset.url}: found no box to learn on {dataset.images} images, all annotated for detect, {expected}")
    if not boxes and unknown:
        raise DataError(f"{dataset.url}: found no box, and no class {', '.join(unknown)} in {url}; expected a teacher of all classes")
    logger.info("event=teacher url=%s images_without_boxes=%d boxes=%d unknown_classes='%s'", url, without_boxes, boxes, ", ".join(unknown))


def _check_sides(sides: np.ndarray, dataset: Dataset, image_px: int) -> None:
    """Refuse a training set without a box to learn, and warn of one whose boxes (N, 2) are all too small to be seen."""
    if not len(sides):
        found = f"found {dataset.boxes} boxes, all of them crowd regions" if dataset.boxes else f"found no box on {dataset.images} images"
        raise DataError(f"{dataset.url}: {found}, expected boxes of single objects to train on")
    if sides.min(axis=1).max() < MIN_SIDE_PX:
        reason = f"no box has {MIN_SIDE_PX:g} px in width and height at that size, so there is nothing to learn"
        logger.warning("event=boxes_too_small boxes=%d image_px=%d reason='%s'", len(sides), image_px, reason)


def _publish_best(run: str) -> None:
    """Copy the best weights to the run's folder `weights`."""
    newest = newest_checkpoint(run)
    if newest is None:
        raise DataError(f"{run}: found no checkpoint after training, expected one")
    best = storage.join(run, newest[1]["best"])
    manifest.publish(storage.join(run, "weights"), manifest.read_published(best, (CONFIG_FILE, TENSORS_FILE)))

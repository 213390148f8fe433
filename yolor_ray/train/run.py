"""Run a training job: prepare data, anchors and run folder, start the workers, publish the best weights."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray.train

from yolor_ray.cluster.block_source import direct_source
from yolor_ray.config import TrainConfig
from yolor_ray.data.loading.loader import Source
from yolor_ray.data.shards import union
from yolor_ray.data.shards.dataset import MANIFEST, VERSION, Dataset, read_row_group
from yolor_ray.errors import DataError, Preempted
from yolor_ray.io import manifest, storage
from yolor_ray.model.weights import CONFIG_FILE, TENSORS_FILE, WeightsInfo, load_weights
from yolor_ray.pack.run import pack_scenes
from yolor_ray.pack.scenes_url import SCENES_PREFIX, VALIDATION_SEED, scene_count
from yolor_ray.train.anchors import best_possible_recall, fit_anchors
from yolor_ray.train.checkpoint.checkpoint import complete_checkpoints, newest_checkpoint
from yolor_ray.train.context import Report, TrainContext
from yolor_ray.train.elastic.worker_group import run_in_process, run_on_workers
from yolor_ray.train.loop import TrainOutcome
from yolor_ray.train.settings_lock import RUN_FILE, lock_settings
from yolor_ray.train.warm_start import pretrained_anchors

logger = logging.getLogger(__name__)

MUTABLE_SETTINGS = ("cluster.", "run.storage", "run.name", "run.checkpoint_", "run.validate_epochs", "data.decode_threads")
"""Settings that a resumed run may change: they do not change what is learned."""
LOW_RECALL = 0.98
TRAINING_SEED = 0


def train(
    config: TrainConfig,
    *,
    source: Source | None = None,
    report: Report | None = None,
    callbacks: Sequence[ray.train.UserCallback] = (),
) -> dict[str, Any]:
    """Train, or go on with the run of that name, and return `run`, `weights` and `metrics`.

    The same storage and name again resumes; a finished run returns its result at once.

    Args:
        config: the run.
        source: encoded row groups of the training set, where someone holds them already.
        report: hears of each validation before the last when training is in this process; after a restart, of earlier ones again.
        callbacks: hear the same when training is on workers of a cluster.

    Raises:
        Preempted: SIGTERM asked training to end, and what it had learned by then is in a checkpoint.

    """
    run = storage.absolute(storage.join(config.run.storage, config.run.name))
    mine, older = dataclasses.asdict(config), dataclasses.asdict(TrainConfig())
    lock_settings(run, RUN_FILE, mine, may_change=MUTABLE_SETTINGS, older=older)
    weights = storage.join(run, "weights")
    if not manifest.is_published(weights):
        context = prepare(config, run)
        if config.cluster.worker_range[1] == 0:
            ended = run_in_process(dataclasses.replace(context, source=source or context.source), report=report)
        else:
            ended = run_on_workers(context, source=source, callbacks=callbacks)
        if ended is TrainOutcome.STOPPED:
            raise Preempted(f"{run}: training was asked to end; the same command goes on from its newest checkpoint")
        _publish_best(run)
    _, info = load_weights(weights)
    logger.info("event=done pictures=%s next='python jobs/serve.py --weights %s'", storage.join(run, "report"), weights)
    return {"run": run, "weights": weights, "metrics": info.metrics}


def prepare(config: TrainConfig, run: str) -> TrainContext:
    """Open the data sets and fit the anchors."""
    train_set, val_set = open_datasets(config)
    pretrained = storage.absolute(config.optim.pretrained) if config.optim.pretrained else ""
    # A run that goes on has its anchors in its checkpoint, and does not ask for the weights that it started from again.
    begun = bool(complete_checkpoints(run))
    anchors = _anchors(config, train_set, "" if begun else pretrained)
    identities = _identities(train_set) if "embed" in config.network.tasks else np.zeros(0, np.int64)
    if "embed" in config.network.tasks and len(identities) == 0:
        raise DataError(f"{train_set.url}: found no identity, expected some for network.tasks: embed")
    return TrainContext(config, run, train_set, val_set, anchors, direct_source(train_set), identities, pretrained)


def _identities(dataset: Dataset) -> np.ndarray:
    """Return the known individuals of a data set, ascending."""
    columns = [read_row_group(dataset, group, ["identities"])["identities"] for group in dataset.row_groups]
    found = np.unique(np.concatenate([column.combine_chunks().flatten().to_numpy(zero_copy_only=False) for column in columns]))
    return found[found >= 0].astype(np.int64)


def open_datasets(config: TrainConfig) -> tuple[Dataset, Dataset]:
    """Return the training set and, in its names, the validation set; built-in scenes are packed first.

    Raises:
        DataError: the validation set has names that the training set lacks, or a task has nothing to be learned from.
    """
    train_set = union.open_datasets(_packed(config.data.train, config.run.storage, TRAINING_SEED))
    tasks = config.network.tasks
    # Names that no task learns need not agree.
    image_classes = train_set.image_classes if "classify" in tasks else ()
    keypoint_names = train_set.keypoint_names if "pose" in tasks else ()
    learned = WeightsInfo("", train_set.classes, config.data.image_px, image_classes=image_classes, keypoint_names=keypoint_names)
    val_set = union.relabel_to(union.open_datasets(_packed(config.data.val, config.run.storage, VALIDATION_SEED)), learned)
    empty = {"classify": not train_set.image_classes, "pose": not train_set.keypoint_names}
    missing = [task for task in tasks if task not in train_set.tasks or empty.get(task)]
    if missing:
        found = f"found annotations for {', '.join(train_set.tasks)}"
        raise DataError(f"{train_set.url}: {found}, expected some for network.tasks: {', '.join(missing)} too")
    return train_set, val_set


def _packed(urls: str, folder: str, seed: int) -> str:
    """Return the URLs of packed data sets, separated by commas; `scenes:N` is packed beside the runs first."""
    return ",".join(_packed_one(url.strip(), folder, seed) for url in urls.split(","))


def _packed_one(url: str, folder: str, seed: int) -> str:
    if not url.startswith(SCENES_PREFIX):
        return storage.absolute(url)
    output = storage.join(storage.absolute(folder), "scenes", f"{scene_count(url)}-seed{seed}-v{VERSION}")
    if not storage.exists(storage.join(output, MANIFEST)):
        pack_scenes(output, scene_count(url), seed)
    return output


def _anchors(config: TrainConfig, dataset: Dataset, pretrained: str) -> np.ndarray:
    """Return the anchors of the pretrained weights if they cover the training boxes, else fit new ones; say how well they do."""
    sides = _box_sides(dataset, config.data.image_px)
    network = config.network
    found = pretrained_anchors(pretrained, network) if pretrained else None
    origin = "pretrained"
    if found is None or best_possible_recall(sides, found, anchor_ratio=config.loss.anchor_ratio) < LOW_RECALL:
        found = fit_anchors(sides, network.levels, network.anchors_per_level, strides=network.strides, seed=config.run.seed)
        origin = "fitted"
    recall = best_possible_recall(sides, found, anchor_ratio=config.loss.anchor_ratio)
    shown = " ".join(f"{w:.0f},{h:.0f}" for w, h in found.reshape(-1, 2))
    logger.info("event=anchors origin=%s best_possible_recall=%.4f anchors='%s' boxes=%d", origin, recall, shown, len(sides))
    if recall < LOW_RECALL:
        logger.warning("event=low_recall best_possible_recall=%.4f expected=%.2f: some boxes match no anchor", recall, LOW_RECALL)
    return found


def _box_sides(dataset: Dataset, image_px: int) -> np.ndarray:
    """Return the (N, 2) widths and heights of all boxes in pixels of the network input."""
    sides = [np.zeros((0, 2), np.float32)]
    for group in dataset.row_groups:
        table = read_row_group(dataset, group, ["width", "height", "boxes_xyxy"])
        for width, height, boxes in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
            corners = np.asarray(boxes, np.float32).reshape(-1, 4)
            sides.append((corners[:, 2:] - corners[:, :2]) * (image_px / max(width, height)))
    return np.concatenate(sides)


def _publish_best(run: str) -> None:
    """Copy the run's best weights to where everyone looks for them."""
    found = newest_checkpoint(run)
    if found is None:
        raise DataError(f"{run}: training ended without a checkpoint")
    best = storage.join(run, found[1]["best"])
    manifest.publish(storage.join(run, "weights"), manifest.read_published(best, (CONFIG_FILE, TENSORS_FILE)))

"""Run a training job: prepare data, anchors and run folder, start the workers, publish the best weights."""

import dataclasses
import json
import logging
from typing import Any

import numpy as np

from yolor_ray import storage
from yolor_ray.config import Train
from yolor_ray.data.shards import MANIFEST, Dataset, open_dataset, read_row_group
from yolor_ray.errors import ConfigError, DataError
from yolor_ray.learn.anchors import best_possible_recall, fit_anchors
from yolor_ray.model.weights import CONFIG_FILE, TENSORS_FILE, load_weights
from yolor_ray.runtime.checkpoint import CHECKPOINTS, newest_checkpoint
from yolor_ray.runtime.evaluate import SCENES, VALIDATION_SEED, scene_count
from yolor_ray.runtime.ingest import direct_source
from yolor_ray.runtime.loop import Job
from yolor_ray.runtime.pack import pack_scenes
from yolor_ray.runtime.pretrained import pretrained_anchors
from yolor_ray.runtime.workers import work_here, work_on_cluster

logger = logging.getLogger(__name__)

RUN_FILE = "config.json"
MAY_CHANGE = ("cluster.", "run.", "data.threads")
"""Settings that a resumed run may change: they do not change what is learned."""
LOW_RECALL = 0.98
TRAINING_SEED = 0


def train(config: Train) -> dict[str, Any]:
    """Train, or go on with the run of that name, and return `run`, `weights` and `metrics`.

    The same storage and name again resumes; a finished run returns its result at once.
    """
    run = storage.absolute(storage.join(config.run.storage, config.run.name))
    _claim(run, config)
    weights = storage.join(run, "weights")
    if not storage.is_published(weights):
        job = prepare(config, run)
        if config.cluster.worker_range[1] == 0:
            work_here(job)
        else:
            work_on_cluster(job)
        _publish_best(run)
    _, info = load_weights(weights)
    logger.info("event=done pictures=%s next='python jobs/serve.py --weights %s'", storage.join(run, "report"), weights)
    return {"run": run, "weights": weights, "metrics": info.metrics}


def _claim(run: str, config: Train) -> None:
    """Write the run's configuration, or raise ConfigError if the run was started with another one."""
    place = storage.join(run, RUN_FILE)
    mine = dataclasses.asdict(config)
    if not storage.exists(place):
        storage.write_bytes(place, json.dumps(mine, indent=1).encode())
        return
    # A setting that an older version did not know was what its default says now.
    theirs = _flat_json(dataclasses.asdict(Train())) | flat(json.loads(storage.read_bytes(place)))
    changed = {
        name: (theirs[name], value) for name, value in _flat_json(mine).items() if theirs[name] != value and not name.startswith(MAY_CHANGE)
    }
    if changed:
        shown = ", ".join(f"{name} was {old!r} and is now {new!r}" for name, (old, new) in changed.items())
        raise ConfigError(f"{place}: this run has other settings: {shown}; go on with those or choose a new run.name")


def _flat_json(values: dict[str, Any]) -> dict[str, Any]:
    """Return nested settings by dotted name as a file holds them: with lists for tuples."""
    return flat(json.loads(json.dumps(values)))


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted name, as they are typed on the command line."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def prepare(config: Train, run: str) -> Job:
    """Open the data sets and fit the anchors."""
    train_set = open_dataset(_packed(config.data.train, config.run.storage, TRAINING_SEED))
    val_set = open_dataset(_packed(config.data.val, config.run.storage, VALIDATION_SEED))
    if train_set.classes != val_set.classes:
        raise DataError(f"{val_set.url}: found classes {val_set.classes}, expected those of {train_set.url}: {train_set.classes}")
    pretrained = storage.absolute(config.optim.pretrained) if config.optim.pretrained else ""
    # A run that goes on has its anchors in its checkpoint, and does not ask for the weights that it started from again.
    begun = bool(storage.list_names(storage.join(run, CHECKPOINTS)))
    anchors = _anchors(config, train_set, "" if begun else pretrained)
    return Job(config, run, train_set, val_set, anchors, direct_source(train_set), pretrained)


def _packed(url: str, folder: str, seed: int) -> str:
    """Return the URL of a packed data set; `scenes:N` is packed beside the runs first."""
    if not url.startswith(SCENES):
        return storage.absolute(url)
    output = storage.join(storage.absolute(folder), "scenes", f"{scene_count(url)}-seed{seed}")
    if not storage.exists(storage.join(output, MANIFEST)):
        pack_scenes(output, scene_count(url), seed)
    return output


def _anchors(config: Train, dataset: Dataset, pretrained: str) -> np.ndarray:
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
        table = read_row_group(dataset.url, group, ["width", "height", "boxes_xyxy"])
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
    storage.publish(storage.join(run, "weights"), storage.read_published(best, (CONFIG_FILE, TENSORS_FILE)))

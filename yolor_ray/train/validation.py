"""Measure the averaged weights on the validation set, spread over the workers, and keep the best ones with their report."""

import functools
from dataclasses import dataclass
from typing import Any

from yolor_ray.config import TrainConfig
from yolor_ray.data.shards.dataset import Dataset
from yolor_ray.evaluate.examples import pictures
from yolor_ray.evaluate.metrics import EvalResult, fitness, measure
from yolor_ray.evaluate.predict import merge, predict_groups, shares
from yolor_ray.evaluate.report import report_files
from yolor_ray.inference.detect import predict
from yolor_ray.inference.postprocess import ImageDetections
from yolor_ray.io import manifest, storage
from yolor_ray.model.weights import WeightsInfo, save_weights
from yolor_ray.train.checkpoint.checkpoint import BEST, Progress
from yolor_ray.train.context import TrainContext
from yolor_ray.train.distributed import DistContext
from yolor_ray.train.learner import Learner


@dataclass(frozen=True)
class Validation:
    """Hold what the leading worker knows after a validation."""

    measured: EvalResult
    found: list[ImageDetections]
    """By image id."""


def validate(learner: Learner, dataset: Dataset, config: TrainConfig, dist_context: DistContext) -> Validation | None:
    """Return the numbers of all tasks on the leading worker and None on the others; every worker must call it."""
    network = learner.average.network
    dist_context.broadcast_state(network)
    groups = shares(dataset.row_groups, dist_context.world_size)[dist_context.rank]
    part = dict(
        predict_groups(
            functools.partial(predict, network), dataset, groups, config.data.image_px, config.optim.batch, config.data.decode_threads
        )
    )
    parts = dist_context.gather(part)
    if not dist_context.is_rank_zero:
        return None
    found = merge(parts, dataset.images)
    return Validation(measure(dataset, found, config.network.tasks), found)


def keep_best(context: TrainContext, life: int, learner: Learner, progress: Progress, found: Validation) -> None:
    """Publish the averaged weights and their report as the run's best, if no earlier epoch did better; see `fitness`."""
    run, config, dataset = context.run, context.config, context.val
    metrics, tasks = found.measured.metrics, config.network.tasks
    reached = fitness(metrics, tasks)
    if progress.best and reached <= progress.best_fitness:
        return
    folder = f"{BEST}/{progress.epoch:06d}-{life:04d}"
    info = WeightsInfo(
        config.run.name,
        dataset.classes,
        config.data.image_px,
        metrics,
        image_classes=dataset.image_classes if "classify" in tasks else (),
        keypoint_names=dataset.keypoint_names if "pose" in tasks else (),
    )
    save_weights(storage.join(run, folder), learner.average.network, info)
    # The weights before stay until a checkpoint names these: a run that is killed now goes on from one that names those.
    progress.best, progress.best_fitness = folder, reached
    summary: dict[str, Any] = {"run": run, "epoch": progress.epoch, "data": dataset.url, "images": dataset.images}
    shown = pictures(dataset, found.found, found.measured.boxes)
    manifest.publish(storage.join(run, "report"), report_files(found.measured, shown, summary))

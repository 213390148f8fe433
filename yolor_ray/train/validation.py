"""Evaluate the averaged weights on the validation set, spread over the workers, and publish the best weights with their report."""

import functools
from dataclasses import dataclass
from typing import Any

from yolor_ray.config import TrainConfig
from yolor_ray.data.shards.dataset import Dataset
from yolor_ray.evaluate.examples import select_examples
from yolor_ray.evaluate.metrics import EvalResult, fitness, measure
from yolor_ray.evaluate.predict import merge_detections, predict_row_groups, split_row_groups
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
    """Result of a validation, on rank 0."""

    result: EvalResult
    detections: list[ImageDetections]
    """Detections of each image, by image id."""


def validate(learner: Learner, dataset: Dataset, config: TrainConfig, dist_context: DistContext) -> Validation | None:
    """Evaluate all tasks and return the result on rank 0, None on the other workers; a collective call."""
    network = learner.average.network
    dist_context.broadcast_state(network)
    groups = split_row_groups(dataset.row_groups, dist_context.world_size)[dist_context.rank]
    own_detections = dict(
        predict_row_groups(
            functools.partial(predict, network), dataset, groups, config.data.image_px, config.optim.batch, config.data.decode_threads
        )
    )
    detections_by_rank = dist_context.gather(own_detections)
    if not dist_context.is_rank_zero:
        return None
    detections = merge_detections(detections_by_rank, dataset.images)
    return Validation(measure(dataset, detections, config.network.tasks), detections)


def save_if_best(context: TrainContext, attempt: int, learner: Learner, progress: Progress, validation: Validation) -> None:
    """Publish the averaged weights and their report as the run's best, if no earlier epoch has a higher or equal `fitness`."""
    run, config, dataset = context.run, context.config, context.val
    metrics, tasks = validation.result.metrics, config.network.tasks
    epoch_fitness = fitness(metrics, tasks)
    if progress.best and epoch_fitness <= progress.best_fitness:
        return
    folder = f"{BEST}/{progress.epoch:06d}-{attempt:04d}"
    info = WeightsInfo(
        config.run.name,
        dataset.classes,
        config.data.image_px,
        metrics,
        image_classes=dataset.image_classes if "classify" in tasks else (),
        keypoint_names=dataset.keypoint_names if "pose" in tasks else (),
    )
    save_weights(storage.join(run, folder), learner.average.network, info)
    # The previous best weights stay until a checkpoint names the new ones: a run that is killed now resumes from a checkpoint that
    # names the previous ones.
    progress.best, progress.best_fitness = folder, epoch_fitness
    summary: dict[str, Any] = {"run": run, "epoch": progress.epoch, "data": dataset.url, "images": dataset.images}
    examples = select_examples(dataset, validation.detections, validation.result.boxes)
    manifest.publish(storage.join(run, "report"), report_files(validation.result, examples, summary))

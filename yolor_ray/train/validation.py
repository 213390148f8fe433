"""Evaluate the averaged weights on the validation set, spread over the workers, and publish the best weights with their report."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from yolor_ray.class_names import keypoint_flags
from yolor_ray.data.shards.dataset import RowGroup
from yolor_ray.evaluate.examples import select_examples
from yolor_ray.evaluate.metrics import EvalResult, best_thresholds, fitness, measure
from yolor_ray.evaluate.predict import CONFIDENCE, IOU, MAX_DETECTIONS, locate_detections, merge_detections, split_row_groups
from yolor_ray.evaluate.report import report_files
from yolor_ray.inference.dataset_images import image_batches
from yolor_ray.inference.detect import select, to_input
from yolor_ray.inference.postprocess import ImageDetections
from yolor_ray.io import manifest, storage
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo, save_weights
from yolor_ray.train.checkpoint.checkpoint import BEST, Progress
from yolor_ray.train.context import TrainContext
from yolor_ray.train.distributed import DistContext
from yolor_ray.train.learner import Learner
from yolor_ray.train.losses.validation import ValidationLoss, mean_losses


@dataclass(frozen=True)
class Validation:
    """Result of a validation, on rank 0."""

    result: EvalResult
    detections: list[ImageDetections]
    """Detections of each image, by image id."""
    losses: dict[str, float]
    """`val_loss` and its terms `val_NAME`."""


def validate(learner: Learner, context: TrainContext, dist_context: DistContext) -> Validation | None:
    """Evaluate all tasks and return the result on rank 0, None on the other workers; a collective call."""
    network, dataset = learner.average.network, context.val
    dist_context.broadcast_state(network)
    groups = split_row_groups(dataset.row_groups, dist_context.world_size)[dist_context.rank]
    losses = ValidationLoss(network, context.config.loss, context.label_spec(dataset))
    own_detections = _predict(network, losses, context, groups)
    shares = dist_context.gather((own_detections, losses.totals()))
    if not dist_context.is_rank_zero:
        return None
    detections_by_rank, totals_by_rank = zip(*shares, strict=True)
    detections = merge_detections(detections_by_rank, dataset.images)
    return Validation(measure(dataset, detections, context.config.network.tasks), detections, mean_losses(totals_by_rank))


@torch.inference_mode()
def _predict(network: Yolor, losses: ValidationLoss, context: TrainContext, groups: Sequence[RowGroup]) -> dict[int, ImageDetections]:
    """Return the detections of each image of the row groups by image id, and add the images' losses from the same forward passes."""
    config, device = context.config, network.head.anchors.device
    detections: dict[int, ImageDetections] = {}
    for images in image_batches(context.val, groups, config.data.image_px, config.optim.batch, config.data.decode_threads):
        raw = network(to_input(torch.from_numpy(images.images), device))
        losses.add(raw, images)
        selected = select(network.decode(raw), confidence=CONFIDENCE, iou=IOU, max_detections=MAX_DETECTIONS)
        detections.update(locate_detections(images, selected, keypoint_flags(context.val)))
    return detections


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
        thresholds=best_thresholds(validation.result.boxes),
        image_classes=dataset.image_classes if "classify" in tasks else (),
        keypoint_names=dataset.keypoint_names if "pose" in tasks else (),
        class_keypoints=dataset.class_keypoints if "pose" in tasks else {},
    )
    save_weights(storage.join(run, folder), learner.average.network, info)
    # The previous best weights stay until a checkpoint names the new ones: a run that is killed now resumes from a checkpoint that
    # names the previous ones.
    progress.best, progress.best_fitness = folder, epoch_fitness
    summary: dict[str, Any] = {"run": run, "epoch": progress.epoch, "data": dataset.url, "images": dataset.images}
    examples = select_examples(dataset, validation.detections, validation.result.boxes)
    manifest.publish(storage.join(run, "report"), report_files(validation.result, examples, summary))

"""Say what a training worker needs to know, and build from it what a worker trains with."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from yolor_ray.boxes import cxcywh_from_xyxy
from yolor_ray.cluster.stop_signal import StopSignal, never_stop
from yolor_ray.config import TrainConfig
from yolor_ray.data.augment.label_spec import LabelSpec
from yolor_ray.data.loading.epoch_plan import Window, epoch_windows
from yolor_ray.data.loading.loader import Batch, Loader, Source, records_per_window
from yolor_ray.data.shards.dataset import Dataset
from yolor_ray.model.network import Yolor
from yolor_ray.train.distributed import DistContext
from yolor_ray.train.learner import Learner
from yolor_ray.train.losses.assign import Targets
from yolor_ray.train.optim import Schedule

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class TrainContext:
    """Hold all that a worker needs; small enough to send, for pixels and weights travel otherwise."""

    config: TrainConfig
    run: str
    """Folder of the run."""
    train: Dataset
    val: Dataset
    anchors: np.ndarray
    """(L, A, 2) pixels."""
    source: Source
    identities: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Individuals of the training set, ascending, if the network is to tell them apart."""
    pretrained: str = ""
    """URL of the weights to start from, if any."""
    stop_signal: StopSignal = never_stop
    """Tells the leading worker, or a process that trains alone, that training is to end."""
    restart_reason: str = ""
    """Why the life before this one ended, if that is known."""

    @property
    def label_spec(self) -> LabelSpec:
        """What training needs to know beside boxes."""
        tasks, train = self.config.network.tasks, self.train
        members = range(max(len(train.members), 1))
        return LabelSpec(
            masks="segment" in tasks,
            keypoint_names=train.keypoint_names if "pose" in tasks else (),
            identities=self.identities if "embed" in tasks else None,
            image_classes=np.stack([train.image_classes_of(member) for member in members]) if "classify" in tasks else None,
        )


def make_learner(context: TrainContext, dist_context: DistContext) -> Learner:
    """Build the network alike on every worker, and what trains it."""
    config = context.config
    cv2.setNumThreads(0)
    torch.manual_seed(config.run.seed)
    network = Yolor(
        config.network,
        len(context.train.classes),
        torch.tensor(context.anchors),
        image_classes=len(context.train.image_classes),
        keypoints=len(context.train.keypoint_names),
        identities=len(context.identities),
    )
    if dist_context.device.type == "cuda" and dist_context.world_size > 1:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    network = network.to(dist_context.device).train()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = math.ceil(context.train.images / config.optim.batch)
    return Learner(network, config, Schedule(config.optim, steps), dist_context.wrap(network))


def make_loader(context: TrainContext) -> Loader:
    """Return what makes the batches of a worker."""
    config = context.config
    return Loader(
        context.source,
        image_px=config.data.image_px,
        augment=config.augment,
        seed=config.run.seed,
        threads=config.data.decode_threads,
        wanted=context.label_spec,
    )


def windows_of(context: TrainContext, epoch: int) -> list[Window]:
    """Return the windows of an epoch."""
    size = records_per_window(context.config.data.image_px, context.label_spec)
    return epoch_windows(context.train.row_groups, records_per_window=size, seed=context.config.run.seed, epoch=epoch)


def targets_of(batch: Batch) -> Targets:
    """Return what is known about a batch as tensors."""
    others = ("keypoints", "identities", "has_mask", "instances", "image_labels")
    known = {name: torch.from_numpy(array) for name in others if (array := getattr(batch, name)) is not None}
    return Targets(
        torch.from_numpy(batch.positions),
        torch.from_numpy(batch.labels),
        cxcywh_from_xyxy(torch.from_numpy(batch.boxes_xyxy)),
        boxes_known=None if batch.boxes_known.all() else torch.from_numpy(batch.boxes_known),
        **known,
    )

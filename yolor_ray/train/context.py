"""Picklable inputs of a training worker, and factories for its learner, loader, windows and targets."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from yolor_ray.boxes import cxcywh_from_xyxy
from yolor_ray.cluster.cluster_loader import ClusterLoader
from yolor_ray.cluster.stop_signal import StopSignal, never_stop
from yolor_ray.config import TrainConfig
from yolor_ray.data.augment.label_spec import LabelSpec
from yolor_ray.data.loading.batch import Batch
from yolor_ray.data.loading.epoch_windows import Window, epoch_windows
from yolor_ray.data.loading.loader import Source, records_per_window
from yolor_ray.data.loading.loader_process import LoaderProcess
from yolor_ray.data.shards.dataset import Dataset
from yolor_ray.data.shards.relabel import MEMBER_BITS
from yolor_ray.model.network import Yolor
from yolor_ray.train.distributed import DistContext
from yolor_ray.train.learner import Learner
from yolor_ray.train.losses.assign import Targets
from yolor_ray.train.optim.freeze import freeze_parts
from yolor_ray.train.optim.schedule import Schedule
from yolor_ray.train.teacher import load_teacher

BatchLoader = LoaderProcess | ClusterLoader
LoaderFactory = Callable[..., BatchLoader]
"""Makes a loader from the arguments of `Loader`."""
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class TrainContext:
    """Inputs of a worker; small enough to send, because pixels and weights travel separately."""

    config: TrainConfig
    run: str
    """URL of the run's folder."""
    train: Dataset
    val: Dataset
    anchors: np.ndarray | None
    """(L, A, 2) pixels; None for a head without anchors."""
    source: Source
    identities: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Ids of the training set's individuals, ascending; empty without the embed task."""
    pretrained: str = ""
    """URL of the weights to start from; empty for none."""
    class_weights: np.ndarray | None = None
    """(K,) float32 weight of a box in the class loss, by its class; None weighs all boxes equally."""
    teacher: str = ""
    """URL of the weights that teach; empty for none."""
    box_px: float = 0.0
    """Median of the shorter sides of the training boxes, pixels of the network input; 0 without boxes."""
    stop_signal: StopSignal = never_stop
    """Stop signal of rank 0; other workers agree with rank 0."""
    loader: LoaderFactory = LoaderProcess
    """Maker of the loader; workers of a cluster have one that other nodes may help."""
    restart_reason: str = ""
    """End of the previous attempt; empty for the first attempt, and where another driver goes on with the run."""

    def label_spec(self, dataset: Dataset) -> LabelSpec:
        """Return the labels of the network's tasks beside boxes, for the training set or the validation set."""
        tasks, members = self.config.network.tasks, range(max(len(dataset.members), 1))
        # Individuals are numbers, and those of different datasets are never the same.
        has_same_individuals = dataset is self.train or self.config.data.val in ("", self.config.data.train)
        object_classes = np.stack([dataset.classes_of(member) for member in members])
        return LabelSpec(
            masks="segment" in tasks,
            keypoint_names=dataset.keypoint_names if "pose" in tasks else (),
            identities=self.identities[: None if has_same_individuals else 0] if "embed" in tasks else None,
            object_classes=None if object_classes.all() else object_classes,
            image_classes=np.stack([dataset.image_classes_of(member) for member in members]) if "classify" in tasks else None,
        )


def make_learner(context: TrainContext, dist_context: DistContext) -> Learner:
    """Build the learner; the network's initial weights are the same on every worker."""
    config = context.config
    cv2.setNumThreads(0)
    torch.manual_seed(config.run.seed)
    network = Yolor(
        config.network,
        len(context.train.classes),
        None if context.anchors is None else torch.tensor(context.anchors),
        image_classes=len(context.train.image_classes),
        keypoints=len(context.train.keypoint_names),
        identities=np.bincount(context.identities >> MEMBER_BITS).tolist(),
    )
    network.backbone.recompute = network.neck.recompute = config.cluster.recompute_activations
    if dist_context.device.type == "cuda" and dist_context.world_size > 1:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    network = network.to(dist_context.device).train()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    freeze_parts(network, config.optim.freeze)
    steps = math.ceil(context.train.images / config.optim.batch)
    class_weights = None if context.class_weights is None else torch.tensor(context.class_weights, device=dist_context.device)
    teacher = None
    if context.teacher:
        teacher = load_teacher(context.teacher, context.train.classes, config.data.image_px, dist_context.device)
    schedule = Schedule(config.optim, steps)
    return Learner(network, config, schedule, dist_context.wrap(network), teacher, class_weights=class_weights)


def make_loader(context: TrainContext) -> BatchLoader:
    """Build the loader of a worker's batches."""
    config = context.config
    return context.loader(
        context.source,
        image_px=config.data.image_px,
        augment=config.augment,
        seed=config.run.seed,
        decode_threads=config.data.decode_threads,
        label_spec=context.label_spec(context.train),
    )


def make_windows(context: TrainContext, epoch: int) -> list[Window]:
    """Return the windows of an epoch."""
    size = records_per_window(context.config.data.image_px, context.label_spec(context.train))
    seed, mix = context.config.run.seed, context.config.data.mix
    return epoch_windows(context.train.row_groups, records_per_window=size, seed=seed, epoch=epoch, mix=mix)


def make_targets(batch: Batch) -> Targets:
    """Return the labels of a batch as tensors."""
    optional = ("classes_known", "members", "keypoints", "identities", "has_mask", "instances", "image_labels")
    labels = {name: torch.from_numpy(array) for name in optional if (array := getattr(batch, name)) is not None}
    return Targets(
        torch.from_numpy(batch.positions),
        torch.from_numpy(batch.labels),
        cxcywh_from_xyxy(torch.from_numpy(batch.boxes_xyxy)),
        boxes_known=None if batch.boxes_known.all() else torch.from_numpy(batch.boxes_known),
        **labels,
    )

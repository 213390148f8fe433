"""Define the settings of training, from the data to the run."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from yolor_ray.config.network import NetworkConfig
from yolor_ray.errors import check

Freeze = Literal["none", "backbone", "neck"]
Mix = Literal["proportional", "sqrt", "equal"]
LoggerName = Literal["tensorboard", "mlflow", "wandb"]


@dataclass(frozen=True)
class DataConfig:
    """Datasets, and how they are read."""

    train: str = "scenes:320"
    """URL of the packed training set, or several separated by commas that form one set; `scenes:N` makes N built-in scenes."""
    val: str = ""
    """URL of the packed validation set, or several separated by commas; `scenes:N` makes N other built-in scenes. Empty holds a share of
    the training images out; built-in scenes are validated on 80 others."""
    mix: Mix = "proportional"
    """Share of each dataset of `train` in every batch: `proportional` to its images, to their square root (`sqrt`), or `equal`. An epoch
    has as many images as all datasets. With `sqrt` and `equal`, each dataset has epochs of its own, which take each of its images once."""
    hold_out: float = 0.1
    """Share of the training images that is held out for validation where `val` is empty, over 0 and under 1. The content of an image
    decides, so that equal images stay together."""
    allow_shared_images: bool = False
    """Train although `val` has images of `train`; the metrics are then too good."""
    image_px: int = 640
    """Side of the square network input, pixels; a multiple of the coarsest stride."""
    decode_threads: int = 1
    """Threads that decode and augment images, in a process beside each worker, 1 or more."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check(0 < self.hold_out < 1, "data.hold_out", self.hold_out, "over 0 and under 1")
        check(self.decode_threads >= 1, "data.decode_threads", self.decode_threads, "1 or more")
        check(self.image_px >= 64 and self.image_px % 32 == 0, "data.image_px", self.image_px, "a multiple of 32, 64 or more")


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training images; the validation set is never augmented."""

    mosaic: float = 1.0
    """Probability of a 2x2 mosaic of four images, 0 to 1."""
    mixup: float = 0.0
    """Probability of blending two mosaics, 0 to 1."""
    translate: float = 0.1
    """Largest shift, as a fraction of the image side, 0 or more and under 1."""
    scale: float = 0.5
    """Range of the random zoom: from 1 - scale to 1 + scale."""
    degrees: float = 0.0
    """Largest rotation either way, degrees."""
    hue: float = 0.015
    """Largest relative change of hue."""
    saturation: float = 0.7
    """Largest relative change of saturation."""
    value: float = 0.4
    """Largest relative change of brightness."""
    flip_horizontal: float = 0.5
    """Probability of a left-right flip."""
    flip_vertical: float = 0.0
    """Probability of an upside-down flip; 0.5 suits microscopes and aerial views."""
    multi_scale: float = 0.0
    """Range of the random size of a batch: factors from 1 - x to 1 + x; 0.5 in the paper, 0 is fastest."""
    close_mosaic_epochs: int = 10
    """Last epochs without mosaic and mixup, so that training ends on unmixed images; at most an eighth of the run, none in the published
    recipe."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("mosaic", "mixup", "flip_horizontal", "flip_vertical"):
            check(0 <= getattr(self, name) <= 1, f"augment.{name}", getattr(self, name), "0 to 1")
        for name in ("translate", "scale", "hue", "saturation", "value", "multi_scale"):
            check(0 <= getattr(self, name) < 1, f"augment.{name}", getattr(self, name), "0 or more and under 1")
        for name in ("degrees", "close_mosaic_epochs"):
            check(getattr(self, name) >= 0, f"augment.{name}", getattr(self, name), "0 or more")


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses; the defaults of detection are the reference recipe for 640 px from scratch."""

    box: float = 0.05
    """Gain of 1 - CIoU."""
    objectness: float = 0.7
    """Gain of the objectness BCE."""
    cls: float = 0.3
    """Gain of the class BCE at 80 classes; scaled by the number of classes / 80, by no less than 30 / 80."""
    classify: float = 1.0
    """Size of the gradient of image labels on the shared features, relative to detection's."""
    embed: float = 1.0
    """The same for the gradient of identities."""
    segment: float = 1.0
    """The same for the gradient of masks."""
    pose: float = 1.0
    """The same for the gradient of keypoints."""
    anchor_ratio: float = 4.0
    """Largest factor between the sides of an anchor and of a matching box."""
    class_balance: bool = False
    """Weigh the class loss of a box by 1 / sqrt(boxes of its class), for training sets with rare classes."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("box", "objectness", "cls", "classify", "embed", "segment", "pose"):
            check(getattr(self, name) >= 0, f"loss.{name}", getattr(self, name), "0 or more")
        check(self.anchor_ratio > 1, "loss.anchor_ratio", self.anchor_ratio, "more than 1")


LEARNING_RATES = {"auto": 0.002, "sgd": 0.01, "adamw": 0.002}
"""Automatic peak learning rate of each update rule, for detection alone."""
PUBLISHED_RECIPES: dict[str, dict[str, Any]] = {
    "published": {"optimizer": "sgd", "lr": 0.01, "clip_ratio": 0.0},
    "published-finetune": {"optimizer": "sgd", "lr": 0.00402, "final_lr_ratio": 0.4975, "clip_ratio": 0.0, "warmup_epochs": 0.0},
}
"""Settings of the optimizer in each published recipe that are not the defaults."""


@dataclass(frozen=True)
class OptimConfig:
    """Initial weights, optimizer and schedule."""

    pretrained: str = ""
    """URL of unfused initial weights; parameters that do not fit, such as other classes, start at random. `builtin` = the starting weights
    of this package, for networks of the shape of `nano`. Empty starts from scratch."""
    freeze: Freeze = "none"
    """Part of the pretrained network that stays fixed: `backbone`, or `neck` = backbone and neck, so that only the heads learn."""
    teacher: str = ""
    """URL of weights that teach the network, of any size, head and tasks: their detections are targets on images without annotated boxes,
    and their class probabilities are half of the class targets. Classes are matched by name. Empty = none."""
    epochs: int = 300
    """Passes over the training set."""
    patience: int = 0
    """Epochs without a better validation after which the run ends; 0 trains all epochs."""
    batch: int = 16
    """Images per step over all workers together."""
    nominal_batch: int = 64
    """Images per optimizer step, approximately: gradients are accumulated over steps."""
    recipe: Literal["adaptive", "published", "published-finetune"] = "adaptive"
    """`adaptive` = update rule, warm-up, weight average and mosaic follow from the number of updates; `published` = those of YOLOR for 300
    epochs of COCO: SGD at 0.01 down to 0.2 of it, at least 1000 steps of warm-up, no clipping, mosaic to the end; `published-finetune` =
    the second phase at 1280 px, 150 epochs from `pretrained` weights: SGD from 0.004 to 0.002, no warm-up, augment.scale 0.8 and
    augment.mixup 0.2."""
    optimizer: Literal["auto", "sgd", "adamw"] = "auto"
    """Update rule; `auto` = AdamW, or SGD with Nesterov momentum for networks with anchors in runs of 10,000 updates or more."""
    lr: float = 0.0
    """Peak learning rate, for any number of images per update; 0 = 0.01 for SGD, 0.002 for AdamW, and more with several tasks."""
    final_lr_ratio: float = 0.2
    """Learning rate at the end, as a fraction of the peak; the decay follows a cosine."""
    momentum: float = 0.937
    """SGD momentum (Nesterov)."""
    weight_decay: float = 5e-4
    """Weight decay of convolution weights at the nominal batch."""
    warmup_epochs: float = 3.0
    """Epochs of linear warm-up; at least 1000 steps in a long run, at most a tenth of every adaptive run."""
    ema_decay: float = 0.9999
    """Decay of the weight average (EMA), per optimizer step; the average covers at most a tenth of every adaptive run."""
    clip_ratio: float = 3.0
    """Largest gradient norm per step of SGD, as a multiple of the mean norm of earlier steps; 0 clips nothing. AdamW takes every
    gradient with norm 1."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("epochs", "batch", "nominal_batch"):
            check(getattr(self, name) >= 1, f"optim.{name}", getattr(self, name), "1 or more")
        for name in ("lr", "weight_decay", "warmup_epochs", "clip_ratio", "patience"):
            check(getattr(self, name) >= 0, f"optim.{name}", getattr(self, name), "0 or more")
        check(0 <= self.momentum < 1, "optim.momentum", self.momentum, "0 or more and under 1")
        check(0 < self.final_lr_ratio <= 1, "optim.final_lr_ratio", self.final_lr_ratio, "over 0, up to 1")
        check(0 < self.ema_decay < 1, "optim.ema_decay", self.ema_decay, "between 0 and 1")
        for name, published in PUBLISHED_RECIPES.get(self.recipe, {}).items():
            value = getattr(self, name)
            expected = f"{published}, as optim.recipe is {self.recipe}; `--optim.recipe adaptive` takes other values"
            check(value in (published, getattr(OptimConfig, name)), f"optim.{name}", value, expected)
        has_weights = bool(self.pretrained) or self.recipe != "published-finetune"
        check(has_weights, "optim.pretrained", "none", "weights, as optim.recipe is published-finetune")
        expected = "none without optim.pretrained: frozen random weights would never learn"
        check(self.freeze == "none" or self.pretrained != "", "optim.freeze", self.freeze, expected)


@dataclass(frozen=True)
class WorkersConfig:
    """Workers of a job and their resources."""

    workers: str = "0"
    """Workers: 0 = in this process, N = that many, MIN-MAX = as many as the cluster can schedule, also while the job runs."""
    gpu: bool = False
    """One GPU per worker."""
    cpus_per_worker: float = 0.5
    """Logical CPUs that Ray reserves per worker without a GPU."""
    compute_threads: int = 0
    """Compute threads per worker without a GPU; 0 divides the machine's cores evenly."""
    allow_unauthenticated: bool = False
    """Join a cluster without token authentication. Everyone who can connect to such a cluster can run code on the cluster."""

    def __post_init__(self) -> None:
        """Check the worker range."""
        for name in ("cpus_per_worker", "compute_threads"):
            check(getattr(self, name) >= 0, f"cluster.{name}", getattr(self, name), "0 or more")
        low, high = self.worker_range
        check(0 <= low <= high and (low > 0 or high == 0), "cluster.workers", self.workers, "N or MIN-MAX, such as 2 or 1-4")

    @property
    def worker_range(self) -> tuple[int, int]:
        """Minimum and maximum number of workers."""
        limits = self.workers.split("-")
        valid = len(limits) in (1, 2) and all(limit.isdigit() for limit in limits)
        check(valid, "cluster.workers", self.workers, "N or MIN-MAX, such as 2 or 1-4")
        return int(limits[0]), int(limits[-1])


@dataclass(frozen=True)
class ClusterConfig(WorkersConfig):
    """Training workers and their resources."""

    recompute_activations: bool = False
    """Keep few activations and compute the others again in the backward pass: less memory, longer steps, the same weights."""
    max_failures: int = 3
    """Consecutive restarts after lost workers, without a new checkpoint between them, before the run fails."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        check(self.max_failures >= 0, "cluster.max_failures", self.max_failures, "0 or more")


@dataclass(frozen=True)
class RunConfig:
    """Name and folder of a run, its seed, validations and checkpoints."""

    storage: str = "runs"
    """URL of the folder that holds runs."""
    name: str = "train"
    """Name of the run; the same storage and name again resumes it."""
    seed: int = 0
    """Seed of initial weights, order and augmentation."""
    validate_epochs: int = 10
    """Epochs between validations; the last epoch always validates."""
    checkpoint_epochs: int = 10
    """Epochs between checkpoints; the last epoch always writes a checkpoint."""
    checkpoint_steps: int = 0
    """Steps between checkpoints, also inside an epoch; 0 ignores steps."""
    loggers: tuple[LoggerName, ...] = ("tensorboard",)
    """Where the metrics of the epochs go beside `metrics.jsonl`: `tensorboard` = events in the run's folder; `mlflow` and `wandb` = a run
    on the server that their own variables name, with settings, report and weights. They need requirements-loggers.txt."""
    checkpoint_minutes: float = 5.0
    """Longest time without a checkpoint, also inside an epoch: the most training time that a lost node can cost."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("validate_epochs", "checkpoint_epochs"):
            check(getattr(self, name) >= 1, f"run.{name}", getattr(self, name), "1 or more")
        for name in ("checkpoint_steps", "checkpoint_minutes"):
            check(getattr(self, name) >= 0, f"run.{name}", getattr(self, name), "0 or more")
        check(self.name not in ("", ".", "..") and "/" not in self.name, "run.name", self.name, "a plain folder name")


@dataclass(frozen=True)
class TrainConfig:
    """Training of one network."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        """Check combinations of settings."""
        self.network.check_image_px(self.data.image_px, "data.image_px")
        self.network.check_trainable()
        workers = self.cluster.worker_range[1]
        check(self.optim.batch >= max(workers, 1), "optim.batch", self.optim.batch, f"at least one image for each of {workers} workers")

    @property
    def automatic_lr(self) -> float:
        """Peak learning rate for `optim.lr` 0: with AdamW, the step of detection is as large beside other tasks as alone.

        AdamW takes the sum of the tasks' gradients with norm 1, and balanced gradients are as large as their gains. They hardly depend on
        each other, so that the norm of the sum is the root of the sum of their squares.
        """
        is_balanced = self.optim.optimizer != "sgd" and self.optim.freeze != "neck"
        gains = [getattr(self.loss, task) for task in self.network.tasks if task != "detect"] if is_balanced else []
        return LEARNING_RATES[self.optim.optimizer] * math.hypot(1, *gains)

    @property
    def peak_lr(self) -> float:
        """Peak learning rate: `optim.lr`, or the automatic one."""
        return self.optim.lr or self.automatic_lr

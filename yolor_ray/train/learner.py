"""Training steps: forward, loss, backward, and an optimizer update after the scheduled number of batches.

Legend: B images, S side of the square network input in pixels.
"""

import contextlib
import functools
import math
from dataclasses import dataclass, field

import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from yolor_ray.config import TrainConfig
from yolor_ray.errors import ConfigError
from yolor_ray.inference.detect import to_input
from yolor_ray.model.network import Yolor
from yolor_ray.train.losses.assign import Targets
from yolor_ray.train.losses.total import loss_terms
from yolor_ray.train.optim.average import WeightAverage
from yolor_ray.train.optim.clip import GradientClipper
from yolor_ray.train.optim.finite_check import FiniteCheck
from yolor_ray.train.optim.micro_batches import MicroBatches
from yolor_ray.train.optim.optimizer import REFERENCE_IMAGES, make_optimizer
from yolor_ray.train.optim.schedule import Schedule
from yolor_ray.train.optim.task_balance import TaskBalance
from yolor_ray.train.precision import WeightGroup, autocast, converted_weights, make_scaler, weight_groups
from yolor_ray.train.teacher import Teacher

EMA_WINDOW_SHARE = 0.1
"""Maximum window of the weight average, as a share of an adaptive run's updates."""


@dataclass
class Learner:
    """State of a training: network, optimizer, weight average and step."""

    network: Yolor
    config: TrainConfig
    schedule: Schedule
    replica: nn.Module
    """The network, or its distributed wrapper."""
    teacher: Teacher | None = None
    """Network whose detections are targets, too."""
    optimizer: torch.optim.Optimizer = field(init=False)
    average: WeightAverage[Yolor] = field(init=False)
    clipper: GradientClipper = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)
    """Scale of the loss, which only float16 needs."""
    finite_check: FiniteCheck = field(init=False)
    balance: TaskBalance | None = field(init=False)
    """Weights of the tasks' losses; None for detection alone, and where the tasks share nothing that learns."""
    step: int = 0
    """Batches of the run so far."""
    class_weights: Tensor | None = None
    """(K,) weight of a box in the class loss, by its class, on the device; None weighs all boxes equally."""
    micro_batches: MicroBatches = field(default_factory=MicroBatches)
    _accumulated_batches: int = 0
    _weight_groups: list[WeightGroup] = field(init=False)

    def __post_init__(self) -> None:
        """Make the optimizer and the weight average."""
        self.optimizer = make_optimizer(self.network, self.config.optim)
        self._weight_groups = weight_groups(self.network)
        device = self.network.head.anchors.device
        self.clipper = GradientClipper(self.config.optim, torch.zeros((), device=device))
        self.scaler = make_scaler(device)
        self.finite_check = FiniteCheck(self.scaler)
        window = max(self.schedule.updates * EMA_WINDOW_SHARE, 1.0) if self.config.optim.recipe == "adaptive" else math.inf
        self.average = WeightAverage(self.network, self.config.optim.ema_decay, window)
        # The average is a copy of the network, so it is made before the balance listens to the neck. A frozen neck learns no task.
        loss = self.config.loss
        gains = {"classify": loss.classify, "embed": loss.embed, "segment": loss.segment, "pose": loss.pose}
        gains = {task: gains[task] for task in self.network.tasks}
        self.balance = TaskBalance(self.network.neck, gains) if gains and self.config.optim.freeze != "neck" else None

    def learn(self, images: UInt8[Tensor, "B S S 3"], targets: Targets, *, must_update: bool, weight: float = 1.0) -> dict[str, Tensor]:
        """Train on a batch and return the loss terms, detached and on the device.

        Args:
            images: RGB images of the batch.
            targets: annotations of the batch.
            must_update: update even if fewer batches than scheduled are accumulated, as at the end of an epoch.
            weight: weight of the batch relative to those of the other workers, 1 on average.

        Raises:
            NonFiniteLossError: too many consecutive updates had a non-finite gradient, see `FiniteCheck.read`.
            ConfigError: the memory of one of several workers does not hold the worker's batch in the first epoch.
        """
        self.schedule.apply(self.optimizer, self.step)
        is_update = must_update or self.updates_next
        with contextlib.nullcontext() if is_update else self._without_sync():
            terms = self._add_gradients(images, targets, weight)
        self._accumulated_batches += 1
        self.step += 1
        if is_update:
            self._update()
            # Nothing else waits for the device between two steps.
            if must_update or self.finite_check.is_due:
                self.finite_check.read(self.step)
        return terms

    @property
    def updates_next(self) -> bool:
        """True if the next batch ends with an update, also where nothing demands one."""
        return self._accumulated_batches + 1 >= self.schedule.batches_per_update(self.step)

    def _without_sync(self) -> contextlib.AbstractContextManager:
        return self.replica.no_sync() if isinstance(self.replica, DistributedDataParallel) else contextlib.nullcontext()

    def _add_gradients(self, images: Tensor, targets: Targets, weight: float) -> dict[str, Tensor]:
        """Add the gradients of a batch; out of memory in the first epoch, a single worker goes on in micro-batches."""
        if self.step >= self.schedule.steps_per_epoch:
            return self.micro_batches.backward(self._backward, images, targets, weight)
        if not isinstance(self.replica, DistributedDataParallel):
            return self.micro_batches.fit(self._backward, list(self.network.parameters()), images, targets, weight)
        try:
            return self.micro_batches.backward(self._backward, images, targets, weight)
        except torch.OutOfMemoryError as error:
            # The other workers are inside the same all-reduce of gradients, which no worker can repeat alone.
            raise ConfigError(
                f"optim.batch: found {len(images)} images for this worker, which its memory does not hold, expected fewer; resume with "
                "--cluster.recompute_activations or more workers, or start a new run.name with a lower optim.batch "
                "(optim.nominal_batch keeps the images per update)"
            ) from error

    def _backward(self, images: Tensor, targets: Targets, weight: float) -> dict[str, Tensor]:
        device = self.network.head.anchors.device
        pixels, targets = to_input(images, device), targets.to(device)
        if self.teacher:
            with autocast(device):
                targets = self.teacher.add_targets(pixels, targets)
        pixels, targets = self._resize(pixels, targets)
        with autocast(device), converted_weights(self._weight_groups, device):
            raw = self.replica(pixels)
        terms = loss_terms(raw, targets, self.network, self.config.loss, self.class_weights)
        # Workers average their gradients, and an update adds those of its batches: the sum counts as REFERENCE_IMAGES images.
        scale = REFERENCE_IMAGES / self.schedule.batches_per_update(self.step)
        loss = self.balance.balance(terms, self.step) if self.balance else functools.reduce(torch.add, terms.values())
        self.scaler.scale(loss * (scale * weight)).backward()
        return {name: term.detach() for name, term in terms.items()}

    def _resize(self, pixels: Tensor, targets: Targets) -> tuple[Tensor, Targets]:
        """Resize the batch to a random size, equal on all workers in a step."""
        spread, side = self.config.augment.multi_scale, pixels.shape[-1]
        if spread == 0:
            return pixels, targets
        generator = torch.Generator().manual_seed(hash((self.config.run.seed, self.step)))
        factor = 1 + spread * (2 * torch.rand((), generator=generator).item() - 1)
        stride = self.network.head.strides[-1]
        new_side = max(round(side * factor / stride), 1) * stride
        pixels = nn.functional.interpolate(pixels, size=(new_side, new_side), mode="bilinear", align_corners=False)
        return pixels, targets.resize(new_side / side, new_side)

    def _update(self) -> None:
        """Update the weights and their average; a gradient that is not finite changes neither weights nor the optimizer's state."""
        self.scaler.unscale_(self.optimizer)
        norm = self.clipper.clip(self.network.parameters())
        is_bad = ~(norm < math.inf)
        # A NaN would ruin the weights for good. A fused optimizer reads this attribute on the device, which a scaler would set.
        self.optimizer.found_inf = is_bad.float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.finite_check.add(is_bad)
        self.average.update()
        self._accumulated_batches = 0

"""Take one training step: forward, loss, backward, and every so often an optimizer update.

Legend: B images, S side of the square network input in pixels.
"""

import contextlib
import logging
from dataclasses import dataclass, field

import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from yolor_ray.config import TrainConfig
from yolor_ray.errors import NonFiniteLossError
from yolor_ray.inference.detect import to_input
from yolor_ray.model.network import Yolor
from yolor_ray.train.losses.assign import Targets
from yolor_ray.train.losses.total import loss_parts
from yolor_ray.train.optim import Schedule, WeightAverage, make_optimizer

logger = logging.getLogger(__name__)

MAX_BAD_UPDATES = 20
"""Updates in a row with a non-finite gradient that end the run."""


def autocast(device: torch.device) -> torch.autocast:
    """Return bfloat16 autocast where the device computes in it, else a context that does nothing."""
    able = torch.cuda.is_bf16_supported() if device.type == "cuda" else bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    return torch.autocast(device.type, torch.bfloat16, enabled=able)


@dataclass
class Learner:
    """Hold all that training changes, and change it batch by batch."""

    network: Yolor
    config: TrainConfig
    schedule: Schedule
    replica: nn.Module
    """The network, or its distributed wrapper."""
    optimizer: torch.optim.SGD = field(init=False)
    average: WeightAverage[Yolor] = field(init=False)
    step: int = 0
    """Batches taken in the run."""
    _gathered: int = 0
    _bad_updates: int = 0

    def __post_init__(self) -> None:
        """Make the optimizer and the weight average."""
        self.optimizer = make_optimizer(self.network, self.config.optim)
        updates = self.schedule.total_steps / self.schedule.accumulate(self.schedule.total_steps)
        self.average = WeightAverage(self.network, self.config.optim.ema_decay, int(updates))

    def learn(self, images: UInt8[Tensor, "B S S 3"], targets: Targets, *, must_update: bool, weight: float = 1.0) -> dict[str, Tensor]:
        """Learn from a batch and return the parts of its loss, detached and on the device.

        Gradients are gathered over the schedule's number of batches; `must_update` ends the gathering early, as at
        the end of an epoch. `weight` is what the batch counts among those of the other workers, 1 on average.
        """
        self.schedule.apply(self.optimizer, self.step)
        updates = must_update or self._gathered + 1 >= self.schedule.accumulate(self.step)
        with contextlib.nullcontext() if updates else self._without_sync():
            parts = self._backward(images, targets, weight)
        self._gathered += 1
        self.step += 1
        if updates:
            self._update()
        return parts

    @property
    def settled(self) -> bool:
        """Tell whether no gradients are gathered, so that a checkpoint holds everything."""
        return self._gathered == 0

    def _without_sync(self) -> contextlib.AbstractContextManager:
        return self.replica.no_sync() if isinstance(self.replica, DistributedDataParallel) else contextlib.nullcontext()

    def _backward(self, images: Tensor, targets: Targets, weight: float) -> dict[str, Tensor]:
        device = self.network.head.anchors.device
        pixels, targets = self._resized(to_input(images, device), targets.to(device))
        with autocast(device):
            raw = self.replica(pixels)
        parts = loss_parts(raw, targets, self.network, self.config.loss)
        # Workers average their gradients, so the loss counts the images of all workers.
        (torch.stack(list(parts.values())).sum() * (self.config.optim.batch * weight)).backward()
        return {name: part.detach() for name, part in parts.items()}

    def _resized(self, pixels: Tensor, targets: Targets) -> tuple[Tensor, Targets]:
        """Draw a size for this step, the same on every worker."""
        spread, side = self.config.augment.multi_scale, pixels.shape[-1]
        if spread == 0:
            return pixels, targets
        generator = torch.Generator().manual_seed(hash((self.config.run.seed, self.step)))
        factor = 1 + spread * (2 * torch.rand((), generator=generator).item() - 1)
        stride = self.network.head.strides[-1]
        new = max(round(side * factor / stride), 1) * stride
        pixels = nn.functional.interpolate(pixels, size=(new, new), mode="bilinear", align_corners=False)
        return pixels, targets.scaled(new / side, new)

    def _update(self) -> None:
        """Move the weights, unless the gradient is not finite: then count, and give up after too many in a row."""
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.optim.clip_norm)
        # One number is read per update, not per batch: an update with a NaN would ruin the weights for good.
        if torch.isfinite(norm).item():
            self.optimizer.step()
            self.average.update(self.network)
            self._bad_updates = 0
        else:
            self._bad_updates += 1
            logger.warning("event=gradient_not_finite step=%d in_a_row=%d", self.step, self._bad_updates)
        self.optimizer.zero_grad(set_to_none=True)
        self._gathered = 0
        if self._bad_updates >= MAX_BAD_UPDATES:
            raise NonFiniteLossError(f"step {self.step}: {self._bad_updates} updates in a row had no finite gradient; try a lower optim.lr")

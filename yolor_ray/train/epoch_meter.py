"""Add up what an epoch learns and how long it takes."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from yolor_ray.data.loading.loader import Batch


@dataclass
class EpochMeter:
    """Add up losses on the device; read them only when asked."""

    images: int = 0
    steps: int = 0
    totals: dict[str, Tensor] = field(default_factory=dict)
    start: float = field(default_factory=time.monotonic)
    waited_s: float = 0.0
    first_wait_s: float = 0.0

    def add(self, parts: dict[str, Tensor], images: int) -> None:
        """Add a step's losses and how many images it took over all workers."""
        self.totals = {name: self.totals.get(name, 0) + part for name, part in parts.items()}
        self.images += images
        self.steps += 1

    def means(self) -> dict[str, float]:
        """Return the mean loss and its parts."""
        if not self.totals:
            return {"loss": 0.0}
        values = (torch.stack(list(self.totals.values())) / self.steps).tolist()
        return {"loss": sum(values), **dict(zip(self.totals, values, strict=True))}

    @property
    def images_per_s(self) -> float:
        """Images per second over all workers."""
        return self.images / max(time.monotonic() - self.start, 1e-9)

    def rates(self) -> dict[str, float]:
        """Return images/s, the share of time spent waiting for batches, the wait for the first one, and the time since the start."""
        elapsed = max(time.monotonic() - self.start, 1e-9)
        rates = {"images_per_s": self.images_per_s, "wait_share": self.waited_s / elapsed, "first_batch_s": self.first_wait_s}
        return {**rates, "seconds": elapsed}

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield batches and add up the time spent waiting for them."""
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            waited = time.monotonic() - asked
            self.first_wait_s = self.first_wait_s or waited
            self.waited_s += waited
            if batch is None:
                return
            yield batch

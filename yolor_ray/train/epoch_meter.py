"""Losses, speed and waiting time of an epoch."""

import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from yolor_ray.data.loading.batch import Batch


def _peak_memory_gb() -> float:
    """Return the largest memory of this process so far, in units of 1e9 bytes: on its GPU if it has one, else of the machine."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e9
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


@dataclass
class EpochMeter:
    """Running totals of an epoch; the losses stay on the device until they are read."""

    images: int = 0
    steps: int = 0
    totals: dict[str, Tensor] = field(default_factory=dict)
    start: float = field(default_factory=time.monotonic)
    waited_s: float = 0.0
    first_wait_s: float = 0.0
    _shared_at: float = 0.0
    _shared_wait_s: float = 0.0

    def add(self, losses: dict[str, Tensor], images: int) -> None:
        """Add the losses of a step and its number of images over all workers."""
        self.totals = {name: self.totals.get(name, 0) + loss for name, loss in losses.items()}
        self.images += images
        self.steps += 1

    def means(self) -> dict[str, float]:
        """Return the mean `loss` per step and its terms."""
        if not self.totals:
            return {"loss": 0.0}
        values = (torch.stack(list(self.totals.values())) / self.steps).tolist()
        return {"loss": sum(values), **dict(zip(self.totals, values, strict=True))}

    @property
    def images_per_s(self) -> float:
        """Images per second over all workers."""
        return self.images / max(time.monotonic() - self.start, 1e-9)

    def rates(self) -> dict[str, float]:
        """Return images/s, the share of time waiting for batches, the wait for the first batch (s), duration (s) and peak memory (GB)."""
        elapsed_s = max(time.monotonic() - self.start, 1e-9)
        return {
            "images_per_s": self.images_per_s,
            "wait_share": self.waited_s / elapsed_s,
            "first_batch_s": self.first_wait_s,
            "seconds": elapsed_s,
            "memory_gb": _peak_memory_gb(),
        }

    def recent_wait_share(self) -> float:
        """Return the share of time spent waiting for batches since the last call, or since the first batch."""
        now = time.monotonic()
        share = (self.waited_s - self._shared_wait_s) / max(now - self._shared_at, 1e-9)
        self._shared_at, self._shared_wait_s = now, self.waited_s
        return share

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield batches and add up the time spent waiting for them."""
        while True:
            start = time.monotonic()
            batch = next(batches, None)
            waited_s = time.monotonic() - start
            self.waited_s += waited_s
            if self.first_wait_s == 0:
                self.first_wait_s = self._shared_wait_s = waited_s
                self._shared_at = time.monotonic()
            if batch is None:
                return
            yield batch

"""Warn of a worker that is much slower than the others: in every step, all workers wait for the slowest.

The time of a step does not show the slow worker, because the workers wait for each other inside the step. This module compares what a
worker does alone: the wait for its batches, and forward passes of the averaged network.
"""

import logging
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from yolor_ray.inference.detect import to_input
from yolor_ray.model.network import Yolor
from yolor_ray.train.distributed import DistContext

logger = logging.getLogger(__name__)

COMPARE_EVERY_S = 30.0
FORWARD_S = 0.1
"""Least time of the forward passes of a comparison (s): together 0.3 % of a training."""
MAX_IMAGES = 4
"""Images of a forward pass, which bounds the cost on a slow device."""
SLOW_RATIO = 3.0
"""Time relative to the median of the other workers from which a worker counts as slow."""
SLOW_WAIT_SHARE = 0.3
"""Share of time waiting for batches under which a worker's batches count as fast enough."""
SLOW_COMPARISONS = 2
"""Consecutive comparisons in which a worker is slow before the warning, which a short load of its node does not reach."""


@dataclass(frozen=True)
class WorkerSpeed:
    """Speed of a worker alone."""

    node: str
    """Address of the worker's node."""
    forward_s: float
    """Time of a forward pass per image (s)."""
    wait_share: float
    """Share of time waiting for batches."""


class SpeedComparison:
    """Comparison of the workers' speeds at intervals; the beginning of a slow time is warned of once."""

    def __init__(self, dist_context: DistContext) -> None:
        """Start the first interval."""
        self._dist_context = dist_context
        self._last_time = time.monotonic()
        self._slow_in_a_row: Counter[int] = Counter()

    @property
    def is_due(self) -> bool:
        """True if there are other workers, and the last comparison is COMPARE_EVERY_S ago."""
        return self._dist_context.world_size > 1 and time.monotonic() - self._last_time > COMPARE_EVERY_S

    def compare(self, network: Yolor, images: np.ndarray, wait_share: float) -> None:
        """Measure this worker and compare all workers; a collective call.

        Args:
            network: averaged network, in evaluation mode.
            images: (B, S, S, 3) uint8 images of this worker's batch.
            wait_share: share of time that this worker waited for batches.

        """
        forward_s = time_forward(network, torch.from_numpy(images[:MAX_IMAGES]), self._dist_context.device)
        speeds = self._dist_context.gather(WorkerSpeed(self._dist_context.node, forward_s, wait_share))
        self._last_time = time.monotonic()
        if self._dist_context.is_rank_zero:
            self.warn(speeds)

    def warn(self, speeds: Sequence[WorkerSpeed]) -> None:
        """Warn of the workers, by rank, that have been slow in SLOW_COMPARISONS comparisons in a row."""
        for rank, speed in enumerate(speeds):
            others = [*speeds[:rank], *speeds[rank + 1 :]]
            forward_s, wait_share = (statistics.median(getattr(other, name) for other in others) for name in ("forward_s", "wait_share"))
            computes_slowly = speed.forward_s > SLOW_RATIO * forward_s
            waits_long = speed.wait_share > max(SLOW_RATIO * wait_share, SLOW_WAIT_SHARE)
            self._slow_in_a_row[rank] = self._slow_in_a_row[rank] + 1 if computes_slowly or waits_long else 0
            if self._slow_in_a_row[rank] == SLOW_COMPARISONS:
                logger.warning(
                    "event=slow_worker rank=%d node=%s forward_ms=%.1f others_forward_ms=%.1f wait_share=%.2f others_wait_share=%.2f "
                    "consequence='every step waits for this worker' advice='look at the load, the clock and the storage of its node'",
                    *(rank, speed.node, speed.forward_s * 1000, forward_s * 1000, speed.wait_share, wait_share),
                )


@torch.inference_mode()
def time_forward(network: Yolor, images: torch.Tensor, device: torch.device) -> float:
    """Return the time of a forward pass per image (s), the mean of as many passes as fit into FORWARD_S, one at least."""
    pixels, passes = to_input(images, device), 0
    start = _now(device)
    while passes == 0 or _now(device) - start < FORWARD_S:
        network(pixels)
        passes += 1
    return (_now(device) - start) / (passes * len(images))


def _now(device: torch.device) -> float:
    """Return the time (s) at which the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()

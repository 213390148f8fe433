"""The process group of the training workers: rank, device, and the collectives for control messages.

Without a process group, the same calls serve a single process.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

Item = TypeVar("Item")

COLLECTIVE_TIMEOUT_S = 600
"""Longest wait in a collective (s): while one worker validates or writes, the others wait."""


@dataclass(frozen=True)
class DistContext:
    """One worker among all workers of a training attempt."""

    rank: int
    world_size: int
    device: torch.device
    node: str = ""
    """Address of this worker's node; empty for a single process."""
    control_group: Any = None
    """Gloo group for control messages; None uses the default group."""

    @property
    def is_rank_zero(self) -> bool:
        """True for the worker that writes the run's files and scores validations."""
        return self.rank == 0

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return a replica that averages gradients over the workers; for a single worker, the network itself."""
        if self.world_size == 1:
            return network
        devices = [self.device] if self.device.type == "cuda" else None
        # Gradients are views of the buffers that are sent: without the views, each update copies all gradients there and back.
        replica = DistributedDataParallel(network, device_ids=devices, gradient_as_bucket_view=True)
        # The statistics of batch norms that count are those of rank 0. `broadcast_state` sends them before each validation.
        replica.broadcast_buffers = False
        return replica

    def gather(self, item: Item) -> list[Item]:
        """Return every worker's item in rank order; a barrier."""
        if self.world_size == 1:
            return [item]
        items: list[Item] = [item] * self.world_size
        dist.all_gather_object(items, item, group=self.control_group)
        return items

    def start_max(self, number: int) -> Callable[[], int]:
        """Send a number to all workers, and return a function that waits for the maximum over all workers; a barrier."""
        if self.world_size == 1:
            return lambda: number
        maximum = torch.tensor(number)
        work = dist.all_reduce(maximum, dist.ReduceOp.MAX, group=self.control_group, async_op=True)

        def wait() -> int:
            work.wait()
            return int(maximum)

        return wait

    def broadcast_state(self, network: nn.Module) -> None:
        """Copy the weights and statistics of rank 0 to every worker."""
        if self.world_size > 1:
            for tensor in network.state_dict().values():
                dist.broadcast(tensor, src=0)


def make_dist_context(device: torch.device, node: str = "") -> DistContext:
    """Build the context of this worker, on `device` of `node`; without a process group, of a single worker."""
    if not dist.is_initialized():
        return DistContext(0, 1, device, node)
    # A control message after every update must not wait for the GPU, as it would in an NCCL group.
    timeout = timedelta(seconds=COLLECTIVE_TIMEOUT_S)
    control_group = dist.new_group(backend="gloo", timeout=timeout) if dist.get_backend() == "nccl" else None
    return DistContext(dist.get_rank(), dist.get_world_size(), device, node, control_group)

"""Know the other training workers: rank, device, and the few things that workers tell each other.

The same calls work alone, without a process group.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

Item = TypeVar("Item")

COLLECTIVE_TIMEOUT_S = 600
"""Longest that workers wait for each other: while one validates or writes, the others do."""


@dataclass(frozen=True)
class DistContext:
    """Say who this worker is among all workers."""

    rank: int
    world_size: int
    device: torch.device
    control_group: Any = None
    """Process group that what workers tell each other goes through, on the CPU; None is the one that gradients take too."""

    @property
    def is_rank_zero(self) -> bool:
        """Tell whether this worker writes files and scores."""
        return self.rank == 0

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return the network, or a replica that averages gradients over the workers."""
        if self.world_size == 1:
            return network
        return DistributedDataParallel(network, device_ids=[self.device] if self.device.type == "cuda" else None)

    def gather(self, item: Item) -> list[Item]:
        """Return every worker's item in rank order; a barrier."""
        if self.world_size == 1:
            return [item]
        items: list[Item] = [item] * self.world_size
        dist.all_gather_object(items, item, group=self.control_group)
        return items

    def all_reduce_max(self, number: int) -> int:
        """Return the highest of all workers' numbers; a barrier."""
        if self.world_size == 1:
            return number
        shared = torch.tensor(number)
        dist.all_reduce(shared, dist.ReduceOp.MAX, group=self.control_group)
        return int(shared)

    def broadcast_state(self, network: nn.Module) -> None:
        """Give every worker the first one's weights and statistics."""
        if self.world_size > 1:
            for tensor in network.state_dict().values():
                dist.broadcast(tensor, src=0)


def make_dist_context(device: torch.device) -> DistContext:
    """Return the dist_context of the process group, or a dist_context of one, with this worker on `device`."""
    if not dist.is_initialized():
        return DistContext(0, 1, device)
    # Asking each other after every update must not wait for the GPU.
    patience = timedelta(seconds=COLLECTIVE_TIMEOUT_S)
    talk = dist.new_group(backend="gloo", timeout=patience) if dist.get_backend() == "nccl" else None
    return DistContext(dist.get_rank(), dist.get_world_size(), device, talk)

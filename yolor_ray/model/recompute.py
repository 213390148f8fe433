"""Recompute activations in the backward pass (activation checkpointing): a block keeps its input alone, and runs forward twice."""

import contextlib

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_block(block: nn.Module, x: Tensor, *, recompute: bool) -> Tensor:
    """Return the output of a block; gradients and statistics are the same with and without `recompute`.

    Args:
        block: a block without random layers.
        x: input of the block.
        recompute: compute the activations again in the backward pass instead of keeping them.
    """
    if not (recompute and torch.is_grad_enabled()):
        return block(x)

    def contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
        return contextlib.nullcontext(), _KeptStatistics(block)

    return checkpoint(block, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


class _KeptStatistics(contextlib.AbstractContextManager[None]):
    """Let the batch norms update copies of their running statistics, because the first pass has counted the batch.

    Each backward pass through the block enters the context once more.
    """

    def __init__(self, block: nn.Module) -> None:
        self._statistics = [(module, name, buffer) for module in block.modules() for name, buffer in module.named_buffers(recurse=False)]

    def __enter__(self) -> None:
        for module, name, buffer in self._statistics:
            setattr(module, name, buffer.clone())

    def __exit__(self, *_: object) -> None:
        for module, name, buffer in self._statistics:
            setattr(module, name, buffer)

"""Micro-batches: parts of a step's batch that pass the network one after the other, because the batch does not fit the memory.

The gradient is the mean over the images of the batch, as without parts. Batch norms see a part at a time, as with a smaller
`optim.batch` and more accumulation. Legend: B images, S side of the square network input in pixels.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from yolor_ray.train.losses.assign import Targets

logger = logging.getLogger(__name__)

Backward = Callable[[Tensor, Targets, float], dict[str, Tensor]]
"""Adds the gradients of images and their targets, times a weight, and returns the loss terms, detached."""


@dataclass
class MicroBatches:
    """Number of parts of each batch, which doubles when the memory runs out."""

    count: int = 1

    def backward(self, backward: Backward, images: UInt8[Tensor, "B S S 3"], targets: Targets, weight: float) -> dict[str, Tensor]:
        """Add the gradients of a batch, part by part, and return the loss terms: means over the parts, weighted by their images.

        Args:
            backward: forward and backward pass of a part.
            images: RGB images of the batch.
            targets: annotations of the batch.
            weight: weight of the batch.
        """
        parts = min(self.count, len(images))
        if parts == 1:
            return backward(images, targets, weight)
        totals: dict[str, Tensor] = {}
        for part in range(parts):
            start, stop = len(images) * part // parts, len(images) * (part + 1) // parts
            share = (stop - start) / len(images)
            part_targets = targets.of_images(torch.arange(start, stop, device=targets.images.device))
            terms = backward(images[start:stop], part_targets, weight * share)
            totals = {name: totals.get(name, 0) + term * share for name, term in terms.items()}
        return totals

    def fit(
        self, backward: Backward, parameters: Sequence[Tensor], images: UInt8[Tensor, "B S S 3"], targets: Targets, weight: float
    ) -> dict[str, Tensor]:
        """Do the same as `backward`, and repeat the batch in twice as many parts as long as the memory runs out.

        Gradients of a failed try are dropped. Gradients of earlier batches stay.

        Args:
            backward: forward and backward pass of a part.
            parameters: parameters whose gradients `backward` adds to.
            images: RGB images of the batch.
            targets: annotations of the batch.
            weight: weight of the batch.

        Raises:
            torch.OutOfMemoryError: a single image does not fit the memory.
        """
        earlier = [parameter.grad for parameter in parameters]
        while True:
            for parameter in parameters:
                parameter.grad = None
            terms = self._try(backward, images, targets, weight)
            if terms is not None:
                _add_gradients(parameters, earlier)
                return terms
            self.count *= 2
            logger.warning("event=out_of_memory batch=%d micro_batch=%d", len(images), -(-len(images) // self.count))
            torch.cuda.empty_cache()

    def _try(self, backward: Backward, images: Tensor, targets: Targets, weight: float) -> dict[str, Tensor] | None:
        """Return the loss terms, or None if the memory ran out and the batch can be split further."""
        try:
            return self.backward(backward, images, targets, weight)
        except torch.OutOfMemoryError:
            if self.count >= len(images):
                raise
            # The activations of the failed try stay in memory as long as the exception exists.
            return None


def _add_gradients(parameters: Sequence[Tensor], earlier: Sequence[Tensor | None]) -> None:
    for parameter, gradient in zip(parameters, earlier, strict=True):
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else gradient.add_(parameter.grad)

"""Loss on the validation set, from the raw outputs that the detections are decoded from.

Legend: B images.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from torch import Tensor

from yolor_ray.config import LossConfig
from yolor_ray.data.augment.label_spec import LabelSpec
from yolor_ray.data.augment.letterboxed import letterboxed_annotations
from yolor_ray.data.loading.batch import Batch, make_batch
from yolor_ray.inference.dataset_images import ImageBatch
from yolor_ray.model.network import Yolor
from yolor_ray.train.context import make_targets
from yolor_ray.train.losses.total import loss_terms

Totals = dict[str, tuple[float, int]]
"""Sum over images, and number of images, of each loss term."""


class ValidationLoss:
    """Totals of the loss terms over the images of one worker; an image counts in the terms that it is annotated for."""

    def __init__(self, network: Yolor, gains: LossConfig, label_spec: LabelSpec) -> None:
        """Start with no image.

        Args:
            network: the validated network.
            gains: weights of the terms.
            label_spec: labels of the network's tasks beside boxes, in the validation set.
        """
        self._network, self._gains, self._label_spec = network, gains, label_spec
        self._sums: dict[str, Tensor] = {}
        self._images: dict[str, int] = {}

    def add(self, raw: dict[str, list[Tensor]], images: ImageBatch) -> None:
        """Add a batch of B images with the raw outputs of the network for them."""
        annotations = [
            letterboxed_annotations(record, image, letterbox, self._label_spec, images.member)
            for record, image, letterbox in zip(images.records, images.images, images.letterboxes, strict=True)
        ]
        batch = make_batch(images.images, annotations)
        targets = make_targets(batch).to(self._network.head.anchors.device)
        for name, term in loss_terms(raw, targets, self._network, self._gains).items():
            count = _annotated_images(name if name in self._network.tasks else "detect", images, batch)
            # A term of a batch without annotations is 0, which would lower the mean.
            if count:
                self._sums[name] = self._sums.get(name, 0) + term.double() * count
                self._images[name] = self._images.get(name, 0) + count

    def totals(self) -> Totals:
        """Return the sums and the numbers of images so far."""
        return {name: (total.item(), self._images[name]) for name, total in self._sums.items()}


def _annotated_images(task: str, images: ImageBatch, batch: Batch) -> int:
    """Return the number of images annotated for a task; for embed, of images with an individual of the training set."""
    if task == "embed":
        assert batch.identities is not None
        return len(np.unique(batch.positions[batch.identities >= 0]))
    return sum(task in record.tasks for record in images.records)


def mean_losses(totals: Iterable[Mapping[str, tuple[float, int]]]) -> dict[str, float]:
    """Return `val_loss` and its terms `val_NAME`, means over the images of all workers; terms that no image has are absent."""
    workers = list(totals)
    names = dict.fromkeys(name for worker in workers for name in worker)
    means = {}
    for name in names:
        sums, images = zip(*(worker[name] for worker in workers if name in worker), strict=True)
        means[f"val_{name}"] = sum(sums) / sum(images)
    return {"val_loss": sum(means.values()), **means} if means else {}

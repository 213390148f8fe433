"""Learners of presets with a batch, and the trace of network and loss into one graph, in a process of its own.

Dynamo cannot trace the checks of shapes that pytest adds to the package.
"""

import sys
from dataclasses import replace

import torch
from torch import Tensor

from yolor_ray.config import presets
from yolor_ray.model.network import Yolor
from yolor_ray.train.learner import Learner
from yolor_ray.train.losses.assign import Targets
from yolor_ray.train.losses.total import loss_terms
from yolor_ray.train.optim.schedule import Schedule

SIDE, CLASSES, BOXES = 64, 20, 12
ANCHORS = torch.tensor([20.0, 60.0, 150.0])[:, None, None].repeat(1, 3, 2)


def make_learner(preset: str) -> Learner:
    config = presets.PRESETS[preset]
    optim = replace(config.optim, batch=2, nominal_batch=2, optimizer="adamw" if preset == "nano" else "sgd", lr=0.001)
    config = replace(config, optim=optim)
    torch.manual_seed(0)
    anchors = ANCHORS if config.network.head == "anchors" else None
    counts = {"image_classes": 3, "identities": (5,), "keypoints": 2}
    network = Yolor(config.network, CLASSES, anchors, **counts).train().to(memory_format=torch.channels_last)
    return Learner(network, config, Schedule(optim, 100), network)


def make_batch(*, everything: bool = False) -> tuple[Tensor, Targets]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)
    boxes_cxcywh = torch.cat([torch.rand(BOXES, 2, generator=generator) * size + low for size, low in ((SIDE, 0), (SIDE / 2, 4))], dim=1)
    labels = torch.randint(CLASSES, (BOXES,), generator=generator)
    targets = Targets(torch.arange(BOXES) % 2, labels, boxes_cxcywh)
    if not everything:
        return images, targets
    return images, replace(
        targets,
        boxes_known=torch.tensor([True, False]),
        classes_known=torch.ones(2, CLASSES, dtype=torch.bool),
        keypoints=torch.rand(BOXES, 2, 3) * SIDE,
        identities=torch.arange(BOXES) % 5,
        has_mask=torch.ones(BOXES, dtype=torch.bool),
        instances=torch.randint(BOXES, (2, SIDE, SIDE), dtype=torch.int32),
        image_labels=torch.tensor([[1.0, 0.0, float("nan")]] * 2),
        unsure_images=torch.tensor([0]),
        unsure_cxcywh=torch.tensor([[30.0, 30.0, 20.0, 20.0]]),
    )


def largest_difference(preset: str) -> float:
    """Return the largest relative difference of the loss terms, traced without a break and not traced."""
    learner, (images, targets) = make_learner(preset), make_batch()
    network, gains = learner.network.eval(), learner.config.loss

    def losses(x: Tensor) -> Tensor:
        return torch.stack(list(loss_terms(network(x), targets, network, gains).values()))

    pixels = images.permute(0, 3, 1, 2) / 255
    expected = losses(pixels)
    traced = torch.compile(losses, fullgraph=True, backend="eager")(pixels)
    traced.sum().backward()
    return ((traced - expected) / expected).abs().max().item()


if __name__ == "__main__":
    for name in sys.argv[1:]:
        sys.stdout.write(f"{largest_difference(name)}\n")

"""The losses of both heads, over all levels at once, equal those of loops: terms and gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor

import plain_losses
from yolor_ray.config import LossConfig, NetworkConfig
from yolor_ray.model.network import Yolor
from yolor_ray.train.losses.assign import Targets
from yolor_ray.train.losses.total import loss_terms

SIDE, IMAGES, CLASSES = 64, 2, 3
ANCHORS = torch.tensor([[[8.0, 10.0], [16.0, 12.0], [12.0, 24.0]], [[30.0, 30.0], [60.0, 32.0], [40.0, 80.0]]])
OPTIONS: dict[str, dict[str, Any]] = {
    "all known": {},
    "boxes of an image unknown": {"boxes_known": torch.tensor([True, False])},
    "classes unknown": {"classes_known": torch.tensor([[True, True, True], [True, False, True]])},
    "unsure boxes": {
        "unsure_images": torch.tensor([0, 1]),
        "unsure_cxcywh": torch.tensor([[20.0, 40.0, 30.0, 14.0], [50.0, 12.0, 3.0, 4.0]]),
    },
    "unsure boxes and an unknown image": {
        "boxes_known": torch.tensor([False, True]),
        "unsure_images": torch.tensor([1]),
        "unsure_cxcywh": torch.tensor([[33.0, 30.0, 20.0, 40.0]]),
    },
    "soft labels": {"soft_labels": torch.rand(7, CLASSES, generator=torch.Generator().manual_seed(0))},
}


def make_targets(boxes: int, **options: Any) -> Targets:
    """Return boxes of all sizes, some of which share cells, and one on the corner of the image."""
    generator = torch.Generator().manual_seed(boxes)
    centres, sides = torch.rand(boxes, 2, generator=generator) * SIDE, torch.rand(boxes, 2, generator=generator) * 50 + 2
    boxes_cxcywh = torch.cat((centres, sides), dim=1)
    boxes_cxcywh[3:4] = torch.tensor([64.0, 64.0, 20.0, 22.0])
    boxes_cxcywh[5:6] = boxes_cxcywh[4:5] + 1
    labels = torch.randint(CLASSES, (boxes,), generator=generator)
    if "classes_known" in options:
        labels = labels.clamp(max=0)
    return Targets(torch.arange(boxes) % IMAGES, labels, boxes_cxcywh, **options)


def make_raw(network: Yolor, scale: float) -> list[Tensor]:
    torch.manual_seed(1)
    raw = network(torch.rand(IMAGES, 3, SIDE, SIDE))["detect"]
    return [(level + scale * torch.randn_like(level)).detach().requires_grad_() for level in raw]


def make_network(head: str, bins: int = 1) -> Yolor:
    torch.manual_seed(0)
    config = NetworkConfig(
        stem="reorg", stem_width=8, widths=(8, 8, 8), depths=(1, 1, 1), levels=2, neck_depth=1, head=head, distance_bins=bins
    )
    return Yolor(config, CLASSES, ANCHORS if head == "anchors" else None)


def assert_equal_losses(network: Yolor, raw: list[Tensor], targets: Targets, class_weights: Tensor | None = None) -> None:
    losses = plain_losses.anchor_losses if network.config.head == "anchors" else plain_losses.free_losses
    expected = losses(raw, targets, network.head, LossConfig(), class_weights)
    found = loss_terms({"detect": raw}, targets, network, LossConfig(), class_weights)
    assert found.keys() == expected.keys()
    for name, term in expected.items():
        torch.testing.assert_close(found[name], term, rtol=1e-6, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}")
        pairs = zip(
            torch.autograd.grad(found[name], raw, retain_graph=True), torch.autograd.grad(term, raw, retain_graph=True), strict=True
        )
        for gradient, plain in pairs:
            torch.testing.assert_close(gradient, plain, rtol=1e-5, atol=1e-5 * plain.abs().max().item())


@pytest.mark.parametrize(("head", "bins"), [("anchors", 1), ("free", 1), ("free", 16)])
@pytest.mark.parametrize("option", OPTIONS)
def test_terms_and_gradients_equal_those_of_loops(head, bins, option):
    network = make_network(head, bins)
    assert_equal_losses(network, make_raw(network, 1.0), make_targets(7, **OPTIONS[option]))


@pytest.mark.parametrize("head", ["anchors", "free"])
@pytest.mark.parametrize("boxes", [0, 1, 24])
def test_a_batch_of_any_number_of_boxes_equals_loops_with_weights_of_classes(head, boxes):
    network = make_network(head)
    assert_equal_losses(network, make_raw(network, 2.0), make_targets(boxes), torch.tensor([0.5, 1.0, 2.0]))

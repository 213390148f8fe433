"""Task-aligned assignment and the loss of the head without anchors, against a slow reference and by cases."""

import pytest
import torch

from yolor_ray.boxes import complete_iou
from yolor_ray.config import LossConfig, NetworkConfig
from yolor_ray.model.heads.free import FreeHead
from yolor_ray.train.losses.assign import Targets
from yolor_ray.train.losses.free import PREDICTIONS_PER_BOX, Assignment, assign, free_losses

CONFIG = NetworkConfig(stem="reorg", stem_width=8, widths=(16, 24, 32), depths=(1, 1, 1), levels=2, neck_depth=1, head="free")
SIDE, CLASSES = 64, 3
SHAPES, STRIDES = [(8, 8), (4, 4)], (8, 16)
CENTRES = torch.cat(
    [(torch.cartesian_prod(torch.arange(n), torch.arange(n)).flip(1).float() + 0.5) * stride for n, stride in ((8, 8), (4, 16))]
)


def random_targets(boxes: int, seed: int = 0) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(boxes, 2, generator=generator) * SIDE
    sides = torch.rand(boxes, 2, generator=generator) * 40 + 1
    images, labels = (torch.randint(n, (boxes,), generator=generator) for n in (2, CLASSES))
    return Targets(images, labels, torch.cat((centres, sides), dim=1))


def random_predictions(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sides = torch.rand(2, 80, 2, generator=generator) * 40 + 1
    return torch.cat((CENTRES.expand(2, -1, -1), sides), dim=2), torch.rand(2, 80, CLASSES, generator=generator)


def reference(boxes: torch.Tensor, scores: torch.Tensor, targets: Targets) -> dict[tuple[int, int], tuple[int, float]]:
    """Return (object, target score) by (image, prediction), by loops over boxes and predictions."""
    alignments, ious, chosen = {}, {}, {}
    for n, (image, label, box) in enumerate(zip(targets.images, targets.labels, targets.boxes_cxcywh, strict=True)):
        pairs = []
        for p, centre in enumerate(CENTRES):
            if ((centre - box[:2]).abs() <= box[2:].clamp(min=8) / 2).all():
                ious[n, p] = max(complete_iou(boxes[image, p][None], box[None]).item(), 0.0)
                alignments[n, p] = scores[image, p, label].item() ** 0.5 * ious[n, p] ** 6 + 1e-9
                pairs.append((-alignments[n, p], p))
        for _, p in sorted(pairs)[:PREDICTIONS_PER_BOX]:
            key = image.item(), p
            if key not in chosen or ious[n, p] > ious[chosen[key], p]:
                chosen[key] = n
    best = {n: max((p for (_, p), m in chosen.items() if m == n), key=lambda p: alignments[n, p]) for n in chosen.values()}
    best_iou = {n: max(ious[n, p] for (_, p), m in chosen.items() if m == n) for n in best}
    return {(image, p): (n, alignments[n, p] / alignments[n, best[n]] * best_iou[n]) for (image, p), n in chosen.items()}


def as_dict(assigned: Assignment) -> dict[tuple[int, int], tuple[int, float]]:
    rows = zip(*(t.tolist() for t in (assigned.images, assigned.predictions, assigned.objects, assigned.scores)), strict=True)
    return {(image, prediction): (box, score) for image, prediction, box, score in rows}


@pytest.mark.parametrize("seed", range(5))
def test_the_assignment_equals_that_of_loops(seed):
    targets, (boxes, scores) = random_targets(12, seed), random_predictions(seed)
    assigned, expected = as_dict(assign(boxes, scores, targets, SHAPES, STRIDES)), reference(boxes, scores, targets)
    assert {key: box for key, (box, _) in assigned.items()} == {key: box for key, (box, _) in expected.items()}
    assert [assigned[key][1] for key in expected] == pytest.approx([score for _, score in expected.values()], abs=1e-5)


def test_a_tiny_box_between_the_centres_of_cells_is_assigned():
    targets = Targets(torch.tensor([1]), torch.tensor([0]), torch.tensor([[40.0, 24.0, 2.0, 2.0]]))
    assigned = assign(*random_predictions(), targets, SHAPES, STRIDES)
    assert len(assigned.objects) > 0
    assert set(assigned.images.tolist()) == {1}
    assert (CENTRES[assigned.predictions] - torch.tensor([40.0, 24.0])).abs().max() <= 4


def test_a_prediction_learns_one_box_and_a_box_at_most_ten_predictions():
    assigned = assign(*random_predictions(), random_targets(40), SHAPES, STRIDES)
    pairs = list(zip(assigned.images.tolist(), assigned.predictions.tolist(), strict=True))
    assert len(pairs) == len(set(pairs))
    assert torch.bincount(assigned.objects).max() <= PREDICTIONS_PER_BOX


def raw_outputs() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 1, n, n, 4 + CLASSES).requires_grad_() for n in (8, 4)]


def losses_of(raw: list[torch.Tensor], targets: Targets) -> dict[str, torch.Tensor]:
    return free_losses(raw, targets, FreeHead(CONFIG, CLASSES), LossConfig())[0]


def test_images_without_boxes_learn_background_alone():
    empty = Targets(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))
    raw = raw_outputs()
    terms = losses_of(raw, empty)
    assert terms["box"] == 0 and terms["cls"] > 0
    sum(terms.values()).backward()
    assert all((level.grad[..., 4:] > 0).all() and (level.grad[..., :4] == 0).all() for level in raw)


def test_the_background_of_an_image_without_all_its_boxes_is_unknown():
    targets = Targets(
        torch.tensor([0, 1]), torch.tensor([1, 2]), torch.tensor([[20.0, 20, 16, 16]] * 2), boxes_known=torch.tensor([True, False])
    )
    raw = raw_outputs()
    sum(losses_of(raw, targets).values()).backward()
    known, unknown = raw[0].grad[0, 0, ..., 4:].abs().sum(dim=-1), raw[0].grad[1, 0, ..., 4:].abs().sum(dim=-1)
    assert (known > 0).all()
    assert 0 < (unknown > 0).sum() <= PREDICTIONS_PER_BOX
    assert (unknown[:1] == 0).all(), "cells outside of the box"


def test_a_step_along_the_gradient_improves_box_and_class():
    targets, raw = random_targets(6), raw_outputs()
    before = losses_of(raw, targets)
    sum(before.values()).backward()
    with torch.no_grad():
        after = losses_of([level - 1e-3 * level.grad for level in raw], targets)
    assert sum(after.values()) < sum(before.values())


def test_matches_name_the_cell_of_each_assigned_prediction():
    targets, raw = random_targets(6), raw_outputs()
    _, matches = free_losses(raw, targets, FreeHead(CONFIG, CLASSES), LossConfig())
    for level, stride in zip(matches, (8, 16), strict=True):
        centres = (torch.stack((level.columns, level.rows), dim=1) + 0.5) * stride
        reach = level.boxes_cxcywh[:, 2:].clamp(min=8) / 2
        assert ((centres - level.boxes_cxcywh[:, :2]).abs() <= reach).all()
        assert torch.equal(level.images, targets.images[level.objects])
        assert torch.equal(level.labels, targets.labels[level.objects])
    assert sum(len(level.objects) for level in matches) > 0

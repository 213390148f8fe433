"""Task-aligned assignment and the loss of the head without anchors, against a slow reference and by cases."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from matched_cells import matched_cells
from plain_boxes import plain_ciou
from plain_losses import free_assignment
from yolor_ray.boxes import ltrb_from_cxcywh
from yolor_ray.config import LossConfig, NetworkConfig
from yolor_ray.model.heads.free import FreeHead
from yolor_ray.train.losses.assign import Matches, Targets
from yolor_ray.train.losses.free import PREDICTIONS_PER_BOX, assign, distribution_loss, free_losses, true_distances
from yolor_ray.train.losses.grid import grid_of

CONFIG = NetworkConfig(stem="reorg", stem_width=8, widths=(16, 24, 32), depths=(1, 1, 1), levels=2, neck_depth=1, head="free")
BINS = 16
SIDE, CLASSES = 64, 3
STRIDES = (8, 16)
GRID = grid_of([torch.zeros(2, 1, n, n, 1) for n in (8, 4)], STRIDES)
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


def as_dict(matches: Matches, scores: torch.Tensor) -> dict[tuple[int, int], tuple[int, float]]:
    columns = (t[matches.valid].tolist() for t in (matches.images, matches.predictions, matches.objects, scores))
    return {(image, prediction): (box, score) for image, prediction, box, score in zip(*columns, strict=True)}


@pytest.mark.parametrize("seed", range(5))
def test_the_assignment_equals_that_of_loops(seed):
    targets, (boxes, scores) = random_targets(12, seed), random_predictions(seed)
    assigned = as_dict(*assign(ltrb_from_cxcywh(boxes), scores, targets, GRID))
    expected = free_assignment(boxes, scores, CENTRES.tolist(), targets, STRIDES[0])
    assert {key: box for key, (box, _) in assigned.items()} == {key: box for key, (box, _) in expected.items()}
    assert [assigned[key][1] for key in expected] == pytest.approx([score for _, score in expected.values()], abs=1e-5)


def test_of_equal_predictions_the_first_ones_learn_a_box_and_of_equal_boxes_the_first_one_is_learned():
    """Predictions without overlap are all equal."""
    far, scores = torch.tensor([1000.0, 1000.0, 1.0, 1.0]).expand(2, 80, 4), torch.rand(2, 80, CLASSES)
    boxes = torch.tensor([[32.0, 32.0, 60.0, 60.0], [32.0, 32.0, 60.0, 60.0]])
    targets = Targets(torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.long), boxes)
    matches, _ = assign(ltrb_from_cxcywh(far), scores, targets, GRID)
    assert sorted(matches.predictions[matches.valid].tolist()) == list(range(PREDICTIONS_PER_BOX))
    assert matches.objects[matches.valid].unique().tolist() == [0]


def test_a_tiny_box_between_the_centres_of_cells_is_assigned():
    targets = Targets(torch.tensor([1]), torch.tensor([0]), torch.tensor([[40.0, 24.0, 2.0, 2.0]]))
    boxes, scores = random_predictions()
    matches, _ = assign(ltrb_from_cxcywh(boxes), scores, targets, GRID)
    assert matches.valid.any()
    assert set(matches.images.tolist()) == {1}
    assert (CENTRES[matches.predictions[matches.valid]] - torch.tensor([40.0, 24.0])).abs().max() <= 4


def test_a_prediction_learns_one_box_and_a_box_at_most_ten_predictions():
    boxes, scores = random_predictions()
    matches, _ = assign(ltrb_from_cxcywh(boxes), scores, random_targets(40), GRID)
    learned = matches.rows[matches.valid]
    assert len(learned) == len(learned.unique()) > PREDICTIONS_PER_BOX
    assert torch.bincount(matches.objects[matches.valid]).max() <= PREDICTIONS_PER_BOX


def raw_outputs(bins: int = 1) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 1, n, n, 4 * bins + CLASSES).requires_grad_() for n in (8, 4)]


def losses_of(raw: list[torch.Tensor], targets: Targets, bins: int = 1) -> dict[str, torch.Tensor]:
    return free_losses(raw, targets, FreeHead(replace(CONFIG, distance_bins=bins), CLASSES), LossConfig())[0]


@pytest.mark.parametrize("bins", [1, BINS])
def test_images_without_boxes_learn_background_alone(bins):
    empty = Targets(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))
    raw = raw_outputs(bins)
    terms = losses_of(raw, empty, bins)
    assert terms["box"] == 0 and terms["cls"] > 0
    sum(terms.values()).backward()
    outputs = 4 * bins
    assert all((level.grad[..., outputs:] > 0).all() and (level.grad[..., :outputs] == 0).all() for level in raw)


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


def test_classes_that_the_dataset_of_an_image_does_not_name_are_unknown():
    known = torch.tensor([[True, True, False], [True, True, True]])
    targets, raw = replace(random_targets(6), labels=torch.zeros(6, dtype=torch.long), classes_known=known), raw_outputs()
    sum(losses_of(raw, targets).values()).backward()
    for level in raw:
        assert (level.grad[0, ..., 4 + 2] == 0).all()
        assert (level.grad[1, ..., 4 + 2] != 0).all() and (level.grad[:, ..., 4:6] != 0).all()


@pytest.mark.parametrize("bins", [1, BINS])
def test_a_step_along_the_gradient_improves_box_and_class(bins):
    targets, raw = random_targets(6), raw_outputs(bins)
    before = losses_of(raw, targets, bins)
    sum(before.values()).backward()
    with torch.no_grad():
        after = losses_of([level - 1e-3 * level.grad for level in raw], targets, bins)
    assert sum(after.values()) < sum(before.values())


def test_matches_name_the_cell_of_each_assigned_prediction():
    targets, raw = random_targets(6), raw_outputs()
    _, matches = free_losses(raw, targets, FreeHead(CONFIG, CLASSES), LossConfig())
    of_levels = matched_cells(matches)
    for level, stride in zip(of_levels, (8, 16), strict=True):
        centres = (torch.stack((level.columns, level.rows), dim=1) + 0.5) * stride
        reach = targets.boxes_cxcywh[level.objects][:, 2:].clamp(min=8) / 2
        assert ((centres - targets.boxes_cxcywh[level.objects][:, :2]).abs() <= reach).all()
        assert torch.equal(level.images, targets.images[level.objects])
    assert sum(len(level.objects) for level in of_levels) > 0


def test_the_distribution_loss_is_the_cross_entropy_of_the_two_bins_beside_each_distance():
    # The cell in row 1, column 2 of the level with stride 16 has the distances 1.25, 0.5, 2 and 30 cells: the last counts as 15.
    raw, cell = raw_outputs(BINS), (0, 0, 1, 2)
    left, top, right, bottom = 40 - 1.25 * 16, 24 - 0.5 * 16, 40 + 2 * 16, 24 + 30 * 16
    box_cxcywh = torch.tensor([[(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]])
    prediction = torch.tensor([8 * 8 + 1 * 4 + 2])
    nothing = torch.zeros(1, dtype=torch.long)
    matches = Matches(nothing == 0, nothing, nothing, prediction, prediction, GRID)
    expected = true_distances(ltrb_from_cxcywh(box_cxcywh), matches)
    assert expected[0].tolist() == pytest.approx([1.25, 0.5, 2.0, 30.0])
    logits = raw[1][cell][: 4 * BINS].detach().view(4, BINS)
    shares = torch.zeros(4, BINS)
    shares[0, 1], shares[0, 2], shares[1, 0], shares[1, 1], shares[2, 2], shares[3, 15] = 0.75, 0.25, 0.5, 0.5, 1.0, 1.0
    loss = distribution_loss(logits[None], expected)
    torch.testing.assert_close(loss[0], F.cross_entropy(logits, shares, reduction="sum"))


def test_distributions_learn_the_true_distances():
    targets = Targets(torch.tensor([0]), torch.tensor([1]), torch.tensor([[30.0, 26.0, 37.0, 29.0]]))
    raw = [torch.zeros(2, 1, n, n, 4 * BINS + CLASSES, requires_grad=True) for n in (8, 4)]
    optimizer = torch.optim.Adam(raw, lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        sum(losses_of(raw, targets, BINS).values()).backward()
        optimizer.step()
    boxes, scores = FreeHead(replace(CONFIG, distance_bins=BINS), CLASSES).decode(raw)
    best = scores[0, :, 1].argmax()
    assert plain_ciou(boxes[0, best][None], targets.boxes_cxcywh) > 0.97

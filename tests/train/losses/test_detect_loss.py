"""The terms of the detection loss for handmade predictions."""

import math
from dataclasses import replace

import pytest
import torch

from matched_cells import matched_cells
from plain_boxes import plain_ciou
from yolor_ray.config import LossConfig, NetworkConfig
from yolor_ray.model.heads.detect import DetectHead
from yolor_ray.train.losses.assign import Matches, Targets, match_boxes
from yolor_ray.train.losses.detect import detection_losses
from yolor_ray.train.losses.grid import grid_of

SIDE, CONFIDENT = 64, 20.0
NOTHING = Targets(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))
ANCHORS = torch.tensor([[[8.0, 10.0], [16.0, 12.0], [12.0, 24.0]], [[30.0, 30.0], [60.0, 32.0], [40.0, 80.0]]])
BOXES = Targets(
    torch.tensor([0, 0, 1]),
    torch.tensor([2, 0, 1]),
    torch.tensor([[13.0, 21.0, 10.0, 12.0], [40.0, 41.0, 28.0, 33.0], [50.0, 14.0, 14.0, 20.0]]),
)


def make_head(classes: int = 3, levels: int = 2) -> DetectHead:
    config = NetworkConfig(stem="reorg", stem_width=8, widths=(8,) * (levels + 1), depths=(1,) * (levels + 1), levels=levels)
    return DetectHead(config, classes, ANCHORS if levels == 2 else torch.ones(levels, 3, 2))


def detection_loss(raw: list[torch.Tensor], targets: Targets, head: DetectHead, gains: LossConfig) -> dict[str, torch.Tensor]:
    return detection_losses(raw, targets, matches_of(raw, targets, head), head, gains)


def matches_of(raw: list[torch.Tensor], targets: Targets, head: DetectHead) -> Matches:
    return match_boxes(targets, head.anchors, grid_of(raw, head.strides), anchor_ratio=LossConfig().anchor_ratio)


def raw_zeros(head: DetectHead, images: int = 2) -> list[torch.Tensor]:
    sides = [SIDE * 2 ** max(len(head.strides) - 3, 0) // stride for stride in head.strides]
    return [torch.zeros(images, 3, side, side, 5 + head.classes, requires_grad=True) for side in sides]


def perfect_predictions(head: DetectHead, targets: Targets) -> list[torch.Tensor]:
    """Return raw outputs that decode to the targets at the matches, and to background elsewhere."""
    raw = [torch.full((2, 3, SIDE // stride, SIDE // stride, 5 + head.classes), -CONFIDENT) for stride in head.strides]
    of_levels = matched_cells(matches_of(raw, targets, head))
    for index, (level, matches, stride) in enumerate(zip(raw, of_levels, head.strides, strict=True)):
        cells = torch.stack((matches.columns, matches.rows), dim=-1)
        boxes, labels = targets.boxes_cxcywh[matches.objects], targets.labels[matches.objects]
        centre = (boxes[:, :2] / stride - cells + 0.5) / 2
        size = (boxes[:, 2:] / head.anchors[index][matches.anchors]).sqrt() / 2
        cell = (matches.images, matches.anchors, matches.rows, matches.columns)
        level[(*cell, slice(0, 4))] = torch.logit(torch.cat((centre, size), dim=1), eps=1e-6)
        level[(*cell, torch.full_like(labels, 4))] = CONFIDENT
        level[(*cell, 5 + labels)] = CONFIDENT
    return raw


def objectness_targets(raw: list[torch.Tensor], targets: Targets, head: DetectHead) -> list[torch.Tensor]:
    """Return the objectness target of each cell, from the gradient: at logit 0 the gradient is (1/2 - target) times a constant."""
    gains = LossConfig(objectness=1.0)
    detection_loss(raw, targets, head, gains)["objectness"].backward()
    scale = [balance * 3 / len(raw) for balance in (4.0, 1.0)]
    assert all(level.grad is not None for level in raw)
    return [0.5 - level.grad[..., 4] * level[..., 4].numel() / s for level, s in zip(raw, scale, strict=True)]


def values(terms: dict[str, torch.Tensor]) -> tuple[float, float, float]:
    return terms["box"].item(), terms["objectness"].item(), terms["cls"].item()


def test_perfect_predictions_cost_nothing():
    head = make_head()
    terms = detection_loss(perfect_predictions(head, BOXES), BOXES, head, LossConfig())
    assert values(terms) == pytest.approx((0, 0, 0), abs=1e-5)


@pytest.mark.parametrize(("term", "channel"), [(0, 0), (0, 3), (1, 4), (2, 5)])
def test_each_term_depends_on_its_own_outputs(term, channel):
    head = make_head()
    raw = perfect_predictions(head, BOXES)
    raw[0][..., channel] = -raw[0][..., channel] + 0.1
    losses = values(detection_loss(raw, BOXES, head, LossConfig()))
    assert losses[term] > 1e-3
    # Objectness depends on the boxes too: its target is their CIoU.
    other_losses = [loss for index, loss in enumerate(losses) if index != term and not (term == 0 and index == 1)]
    assert other_losses == pytest.approx([0] * len(other_losses), abs=1e-5)


def test_a_batch_without_boxes_has_a_finite_loss_and_finite_gradients():
    head = make_head()
    raw = raw_zeros(head)
    terms = detection_loss(raw, NOTHING, head, LossConfig())
    sum(terms.values()).backward()
    assert values(terms) == pytest.approx((0, math.log(2) * (4.0 + 1.0) * 0.7 * 3 / 2, 0))
    for level in raw:
        assert level.grad is not None
        assert torch.isfinite(level.grad).all()
        assert (level.grad[..., 4] > 0).all()
        assert (level.grad[..., :4] == 0).all()


@pytest.mark.parametrize(("levels", "balance", "extra"), [(2, 5.0, 1.0), (3, 5.4, 1.0), (4, 5.5, 1.4), (5, 6.0, 1.4)])
def test_levels_are_balanced_by_the_reference_weights(levels, balance, extra):
    head = make_head(levels=levels)
    terms = detection_loss(raw_zeros(head), NOTHING, head, LossConfig(objectness=0.7))
    assert terms["objectness"].item() == pytest.approx(math.log(2) * balance * 0.7 * 3 / levels * extra, rel=1e-5)


def test_objectness_of_a_fine_level_weighs_four_times_that_of_a_coarse_level():
    head = make_head()
    losses = []
    for wrong_level in range(2):
        raw = raw_zeros(head)
        with torch.no_grad():
            for index, level in enumerate(raw):
                level[..., 4] = CONFIDENT if index == wrong_level else -CONFIDENT
        losses.append(detection_loss(raw, NOTHING, head, LossConfig())["objectness"].item())
    assert losses[0] == pytest.approx(4 * losses[1], rel=1e-4)


def test_objectness_learns_the_ciou_of_the_predicted_box():
    head = make_head()
    raw = raw_zeros(head)
    box = Targets(torch.tensor([1]), torch.tensor([0]), torch.tensor([[28.0, 20.0, 9.0, 11.0]]))
    fine, _ = objectness_targets(raw, box, head)
    predicted = torch.tensor([[28.0, 20.0, 8.0, 10.0]])
    assert fine[1, 0, 2, 3].item() == pytest.approx(plain_ciou(predicted, box.boxes_cxcywh).item(), abs=1e-4)
    assert fine[0].abs().max() < 1e-4, "the other image has no object"
    assert (fine > 1e-3).sum() == 3, "three anchors match, in one cell, because the box is centred on the cell"


def test_a_cell_shared_by_boxes_learns_the_highest_ciou():
    head = make_head()
    good, poor = [28.0, 20.0, 9.0, 11.0], [28.0, 20.0, 20.0, 24.0]
    expected = plain_ciou(torch.tensor([[28.0, 20.0, 8.0, 10.0]]), torch.tensor([good])).item()
    for order in ([good, poor], [poor, good]):
        both = Targets(torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.long), torch.tensor(order))
        fine, _ = objectness_targets(raw_zeros(head), both, head)
        assert fine[0, 0, 2, 3].item() == pytest.approx(expected, abs=1e-4)


def test_a_negative_ciou_gives_an_objectness_target_of_zero():
    head = make_head()
    raw = raw_zeros(head)
    with torch.no_grad():
        raw[0][..., 2:4] = -CONFIDENT
    fine, _ = objectness_targets(raw, BOXES, head)
    assert fine.min() > -1e-4


def test_box_and_class_loss_are_means_over_matches():
    head = make_head()
    once = detection_loss(raw_zeros(head), BOXES, head, LossConfig())
    twice = Targets(*(torch.cat((tensor, tensor)) for tensor in (BOXES.images, BOXES.labels, BOXES.boxes_cxcywh)))
    again = detection_loss(raw_zeros(head), twice, head, LossConfig())
    assert values(again) == pytest.approx(values(once), rel=1e-5)


@pytest.mark.parametrize(("classes", "counted"), [(2, 30), (3, 30), (30, 30), (40, 40), (80, 80)])
def test_the_class_gain_shrinks_with_the_number_of_classes_down_to_30(classes, counted):
    head = make_head(classes)
    boxes = Targets(BOXES.images, BOXES.labels.clamp(max=1), BOXES.boxes_cxcywh)
    terms = detection_loss(raw_zeros(head), boxes, head, LossConfig())
    assert terms["cls"].item() == pytest.approx(math.log(2) * 2 * 0.3 * 3 / 2 * counted / 80, rel=1e-5)


def test_the_class_loss_is_a_mean_over_the_classes_that_the_dataset_of_the_image_names():
    head, images = make_head(classes=3), int(BOXES.images.max()) + 1
    boxes = replace(BOXES, labels=torch.zeros_like(BOXES.labels))
    known = torch.tensor([[True, False, True]]).repeat(images, 1)
    raw = raw_zeros(head)
    terms = detection_loss(raw, replace(boxes, classes_known=known), head, LossConfig())
    assert terms["cls"].item() == pytest.approx(detection_loss(raw_zeros(head), boxes, head, LossConfig())["cls"].item(), rel=1e-5)
    terms["cls"].backward()
    assert all((level.grad[..., 6] == 0).all() for level in raw)
    assert any((level.grad[..., 7] != 0).any() for level in raw)


def test_a_single_class_has_no_class_loss():
    head = make_head(classes=1)
    raw = raw_zeros(head)
    boxes = Targets(BOXES.images, torch.zeros(3, dtype=torch.long), BOXES.boxes_cxcywh)
    terms = detection_loss(raw, boxes, head, LossConfig())
    sum(terms.values()).backward()
    assert terms["cls"].item() == 0
    assert all(level.grad is not None and (level.grad[..., 5] == 0).all() for level in raw)


def test_the_gains_scale_their_terms():
    head = make_head()
    plain = values(detection_loss(raw_zeros(head), BOXES, head, LossConfig(box=0.05, objectness=0.7, cls=0.3)))
    more = values(detection_loss(raw_zeros(head), BOXES, head, LossConfig(box=0.1, objectness=2.1, cls=1.2)))
    assert [b / a for a, b in zip(plain, more, strict=True)] == pytest.approx([2, 3, 4], rel=1e-5)


def test_the_loss_of_half_precision_outputs_is_computed_in_float32():
    head = make_head()
    raw = [level.detach().bfloat16().requires_grad_() for level in raw_zeros(head)]
    terms = detection_loss(raw, BOXES, head, LossConfig())
    sum(terms.values()).backward()
    assert sum(terms.values()).dtype == torch.float32
    assert values(terms) == pytest.approx(values(detection_loss(raw_zeros(head), BOXES, head, LossConfig())), rel=1e-5)
    assert all(level.grad is not None and torch.isfinite(level.grad).all() for level in raw)

"""Boxes, compared with slow references: greedy suppression one box at a time, and CIoU in plain arithmetic."""

import math

import pytest
import torch

from plain_boxes import plain_ciou
from yolor_ray import boxes


def random_boxes(count: int, seed: int, side: float = 100.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(count, 2, generator=generator) * side
    sizes = 5 + torch.rand(count, 2, generator=generator) * 30
    return boxes.xyxy_from_cxcywh(torch.cat((centres, sizes), dim=1))


def iou_of(a: list[float], b: list[float]) -> float:
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union else 0.0


def greedy(boxes_xyxy: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor, *, iou: float, limit: int) -> list[int]:
    """Return the kept indices by the definition of suppression: best first, equal scores in the given order."""
    rows, values, classes = boxes_xyxy.double().tolist(), scores.tolist(), labels.tolist()
    kept: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: (-values[i], i)):
        if len(kept) < limit and not any(classes[k] == classes[i] and iou_of(rows[k], rows[i]) > iou for k in kept):
            kept.append(i)
    return kept


def ciou(a_cxcywh: torch.Tensor, b_cxcywh: torch.Tensor) -> torch.Tensor:
    return boxes.complete_iou(boxes.ltrb_from_cxcywh(a_cxcywh), boxes.ltrb_from_cxcywh(b_cxcywh))


def test_converting_corners_to_centres_and_back_changes_nothing():
    corners = random_boxes(50, seed=0)
    torch.testing.assert_close(boxes.xyxy_from_cxcywh(boxes.cxcywh_from_xyxy(corners)), corners)
    torch.testing.assert_close(boxes.cxcywh_from_xyxy(torch.tensor([10.0, 20.0, 30.0, 60.0])), torch.tensor([20.0, 40.0, 20.0, 40.0]))


def test_iou_of_every_pair_equals_plain_arithmetic():
    a, b = random_boxes(20, seed=1), random_boxes(30, seed=2)
    expected = torch.tensor([[iou_of(x, y) for y in b.tolist()] for x in a.tolist()])
    torch.testing.assert_close(boxes.pairwise_iou(a, b), expected)
    assert (expected > 0).any()


def test_a_box_without_area_overlaps_nothing():
    point = torch.tensor([[5.0, 5.0, 5.0, 5.0]])
    assert boxes.pairwise_iou(point, torch.cat((point, torch.tensor([[0.0, 0.0, 10.0, 10.0]])))).tolist() == [[0.0, 0.0]]


def test_ciou_of_equal_boxes_is_one():
    pair = boxes.cxcywh_from_xyxy(random_boxes(10, seed=3))
    torch.testing.assert_close(ciou(pair, pair), torch.ones(10))


def test_ciou_is_iou_less_centre_distance_and_aspect():
    shifted = ciou(torch.tensor([[1.0, 1.0, 2.0, 2.0]]), torch.tensor([[2.0, 2.0, 2.0, 2.0]]))
    torch.testing.assert_close(shifted, torch.tensor([1 / 7 - 2 / 18]))
    far = ciou(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[9.0, 0.0, 2.0, 2.0]]))
    torch.testing.assert_close(far, torch.tensor([-81 / (11**2 + 2**2)]))
    turned = 4 / math.pi**2 * (math.atan(2) - math.atan(0.5)) ** 2
    crossed = ciou(torch.tensor([[0.0, 0.0, 4.0, 2.0]]), torch.tensor([[0.0, 0.0, 2.0, 4.0]]))
    torch.testing.assert_close(crossed, torch.tensor([1 / 3 - turned**2 / (2 / 3 + turned)]))


def test_ciou_and_its_gradient_equal_plain_arithmetic():
    a, b = (boxes.cxcywh_from_xyxy(random_boxes(500, seed).double()) for seed in (4, 5))
    # Half of the pairs overlap much.
    b[250:] = a[250:] + (b[250:] - a[250:]) / 10
    values, gradients = [], []
    for function in (ciou, plain_ciou):
        predicted = a.clone().requires_grad_()
        values.append(function(predicted, b))
        gradients += torch.autograd.grad(values[-1].sum(), predicted)
    torch.testing.assert_close(values[0], values[1], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-6)
    assert (values[0] > 0.5).any() and (values[0] < 0).any()


@pytest.mark.parametrize("size", [(0.0, 0.0), (1e-6, 50.0), (50.0, 1e-6), (1e4, 1e4), (20.0, 30.0)])
def test_ciou_has_finite_gradients_at_degenerate_boxes(size):
    predicted = torch.tensor([[10.0, 10.0, *size], [90.0, 90.0, *size]], requires_grad=True)
    ciou(predicted, torch.tensor([[10.0, 10.0, 20.0, 30.0]] * 2)).sum().backward()
    assert predicted.grad is not None
    assert torch.isfinite(predicted.grad).all()


def test_the_weight_of_the_aspect_term_gets_no_gradient():
    predicted = torch.tensor([[10.0, 10.0, 40.0, 10.0]], requires_grad=True, dtype=torch.float64)
    target = torch.tensor([[10.0, 10.0, 10.0, 40.0]], dtype=torch.float64)
    ciou(predicted, target).backward()
    step = 1e-6

    def ciou_of_fixed_weight(width: float) -> float:
        """Return the CIoU with the weight of the aspect term at a width of 40."""
        aspect = [4 / math.pi**2 * (math.atan(w / 10) - math.atan(10 / 40)) ** 2 for w in (40.0, width)]
        iou = [10 * 10 / (w * 10 + 400 - 100) for w in (40.0, width)]
        return iou[1] - aspect[0] / (1 - iou[0] + aspect[0]) * aspect[1]

    assert predicted.grad is not None
    assert predicted.grad[0, 2].item() == pytest.approx(
        (ciou_of_fixed_weight(40 + step) - ciou_of_fixed_weight(40 - step)) / (2 * step), rel=1e-4
    )


@pytest.mark.parametrize("classes", [1, 5])
@pytest.mark.parametrize(
    "count", [0, 1, 40, boxes.NMS_BLOCK, boxes.NMS_BLOCK + 1, boxes.NMS_CHUNK + 1, boxes.NMS_CHUNK + 3 * boxes.NMS_BLOCK + 17]
)
def test_suppression_keeps_the_same_boxes_as_its_greedy_definition(count, classes):
    corners = random_boxes(count, seed=count + 6, side=200)
    generator = torch.Generator().manual_seed(count)
    scores = torch.rand(count, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    expected = greedy(corners, scores, labels, iou=0.3, limit=10_000)
    assert boxes.suppress(corners, scores, labels, iou=0.3, limit=10_000).tolist() == expected
    assert count < 40 or len(expected) < count


def test_boxes_of_equal_score_keep_the_given_order():
    corners, labels = random_boxes(600, seed=7), torch.zeros(600, dtype=torch.long)
    scores = torch.randint(3, (600,), generator=torch.Generator().manual_seed(0)) / 4
    assert boxes.suppress(corners, scores, labels, iou=0.4, limit=600).tolist() == greedy(corners, scores, labels, iou=0.4, limit=600)


@pytest.mark.parametrize("limit", [1, 7, 100])
def test_a_limit_keeps_the_best_boxes(limit):
    corners, labels = random_boxes(700, seed=8, side=400), torch.arange(700) % 3
    scores = torch.rand(700, generator=torch.Generator().manual_seed(1))
    kept = boxes.suppress(corners, scores, labels, iou=0.5, limit=limit).tolist()
    assert kept == greedy(corners, scores, labels, iou=0.5, limit=limit)
    assert len(kept) == limit


def test_every_second_box_of_a_chain_of_overlaps_is_kept():
    left = torch.arange(20.0) * 4
    chain = torch.stack((left, torch.zeros(20), left + 10, torch.full((20,), 10.0)), dim=1)
    scores = torch.linspace(1, 0.1, 20)
    kept = boxes.suppress(chain, scores, torch.zeros(20, dtype=torch.long), iou=0.4, limit=20)
    assert kept.tolist() == list(range(0, 20, 2))


def test_a_prediction_may_have_several_classes_that_never_suppress_each_other():
    corners = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [50.0, 50.0, 60.0, 60.0]])
    scores = torch.tensor([[0.9, 0.6], [0.8, 0.1], [0.2, 0.1]])
    selected, confidences, labels, predictions = boxes.select(corners, scores, confidence=0.15, iou=0.5, limit=10)
    assert selected.tolist() == [corners[0].tolist(), corners[0].tolist(), corners[2].tolist()]
    assert labels.tolist() == [0, 1, 0]
    assert predictions.tolist() == [0, 0, 2]
    assert confidences.tolist() == pytest.approx([0.9, 0.6, 0.2])


def test_scores_that_are_not_above_the_confidence_select_nothing():
    selected = boxes.select(random_boxes(5, seed=9), torch.full((5, 3), 0.2), confidence=0.2, iou=0.5, limit=10)
    assert [tensor.shape for tensor in selected] == [(0, 4), (0,), (0,), (0,)]


def test_candidates_beyond_the_limit_are_the_worst(monkeypatch):
    monkeypatch.setattr(boxes, "CANDIDATE_LIMIT", 10)
    monkeypatch.setattr(boxes, "FIRST_CANDIDATES", 4)
    corners = random_boxes(50, seed=10, side=10_000)
    scores = torch.rand(50, 2, generator=torch.Generator().manual_seed(2))
    _, confidences, _, _ = boxes.select(corners, scores, confidence=0.0, iou=0.5, limit=300)
    torch.testing.assert_close(confidences, scores.flatten().sort(descending=True).values[:10])


def by_definition(corners: torch.Tensor, scores: torch.Tensor, *, confidence: float, iou: float, limit: int) -> list[tuple[int, int]]:
    """Return prediction and label of each detection: greedy suppression of all scores above the confidence."""
    pairs = [(p, k) for p, row in enumerate(scores.tolist()) for k, score in enumerate(row) if score > confidence]
    predictions, labels = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
    kept = greedy(corners[predictions], scores[predictions, labels], labels, iou=iou, limit=limit)
    return [pairs[i] for i in kept]


@pytest.mark.parametrize("first", [1, 30, 2_000])
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("kind", ["distinct", "equal scores", "nan", "infinite", "one above", "all equal", "clustered"])
def test_selection_gives_the_detections_of_its_definition(kind, classes, first, monkeypatch):
    monkeypatch.setattr(boxes, "FIRST_CANDIDATES", first)
    generator = torch.Generator().manual_seed(3)
    corners = random_boxes(300, seed=11, side=40 if kind == "clustered" else 200)
    scores = torch.rand(300, classes, generator=generator)
    if kind == "equal scores":
        scores = (scores * 4).floor() / 4
    elif kind == "all equal":
        scores[:] = 0.5
    elif kind == "one above":
        scores[1:] *= 0.2
    elif kind in ("nan", "infinite"):
        scores[torch.rand(300, classes, generator=generator) < 0.3] = math.nan if kind == "nan" else math.inf
    for limit in (5, 100, 1_000):
        expected = by_definition(corners, scores, confidence=0.2, iou=0.4, limit=limit)
        selected, confidences, labels, predictions = boxes.select(corners, scores, confidence=0.2, iou=0.4, limit=limit)
        assert list(zip(predictions.tolist(), labels.tolist(), strict=True)) == expected
        assert torch.equal(selected, corners[predictions])
        assert torch.equal(confidences, scores[predictions, labels])


@pytest.mark.parametrize("limit", [5, 1_000])
def test_each_class_may_have_a_confidence_of_its_own(limit):
    corners, scores = random_boxes(300, seed=13, side=200), torch.rand(300, 3, generator=torch.Generator().manual_seed(5))
    scores[::7] = math.nan
    least = torch.tensor([0.9, 0.2, 0.6])
    expected = by_definition(corners, scores.where(scores > least, -1.0), confidence=0.0, iou=0.4, limit=limit)
    _, _, labels, predictions = boxes.select(corners, scores, confidence=least, iou=0.4, limit=limit)
    assert list(zip(predictions.tolist(), labels.tolist(), strict=True)) == expected
    assert limit == 5 or set(labels.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("one_class", [True, False])
def test_twenty_thousand_overlapping_boxes_are_suppressed_as_by_definition(one_class):
    generator = torch.Generator().manual_seed(4)
    objects = torch.randint(25, (25_200,), generator=generator)
    corners = random_boxes(25, seed=12, side=400)[objects] + torch.randn(25_200, 4, generator=generator)
    scores = torch.rand(25_200, generator=generator)
    labels = torch.zeros_like(objects) if one_class else objects % 7
    expected = greedy(corners, scores, labels, iou=0.65, limit=300)
    assert boxes.suppress(corners, scores, labels, iou=0.65, limit=300).tolist() == expected

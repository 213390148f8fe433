"""Who learns which box: the reference rule, cell by cell, at borders and for every anchor."""

import math

import pytest
import torch

from yolor_ray.train.losses.assign import Matches, Targets, match_level

STRIDE, WIDTH, HEIGHT = 16, 10, 6


def targets_at(*boxes_cxcywh: tuple[float, float, float, float]) -> Targets:
    count = len(boxes_cxcywh)
    return Targets(torch.arange(count), torch.arange(count) % 3, torch.tensor(boxes_cxcywh).view(-1, 4))


def match(targets: Targets, anchors: list[tuple[float, float]], ratio: float = 4.0) -> Matches:
    return match_level(targets, torch.tensor(anchors), STRIDE, HEIGHT, WIDTH, anchor_ratio=ratio)


def cells(matches: Matches) -> list[tuple[int, int]]:
    return sorted(zip(matches.columns.tolist(), matches.rows.tolist(), strict=True))


def cells_by_rule(x: float, y: float) -> list[tuple[int, int]]:
    """Return the cells (column, row) that learn a centre in cell units, by the reference rule."""
    column, row = min(math.floor(x), WIDTH - 1), min(math.floor(y), HEIGHT - 1)
    found = [(column, row)]
    for value, size, step in ((x, WIDTH, (1, 0)), (y, HEIGHT, (0, 1))):
        if value % 1 < 0.5 and value > 1:
            found.append((column - step[0], row - step[1]))
        if value % 1 > 0.5 and value < size - 1:
            found.append((column + step[0], row + step[1]))
    return sorted(found)


@pytest.mark.parametrize(
    ("centre", "expected"),
    [
        ((4.3, 3.3), [(3, 3), (4, 2), (4, 3)]),
        ((4.7, 3.3), [(4, 2), (4, 3), (5, 3)]),
        ((4.7, 3.7), [(4, 3), (4, 4), (5, 3)]),
        ((4.5, 3.5), [(4, 3)]),
        ((0.3, 0.3), [(0, 0)]),
        ((1.3, 0.3), [(0, 0), (1, 0)]),
        ((0.7, 0.7), [(0, 0), (0, 1), (1, 0)]),
        ((9.7, 5.7), [(9, 5)]),
        ((9.3, 5.3), [(8, 5), (9, 4), (9, 5)]),
    ],
)
def test_a_box_is_learned_in_its_cell_and_the_nearest_neighbours(centre, expected):
    found = match(targets_at((centre[0] * STRIDE, centre[1] * STRIDE, 20.0, 20.0)), [(20.0, 20.0)])
    assert cells(found) == expected


def test_every_centre_follows_the_rule_and_no_box_has_more_than_three_cells():
    generator = torch.Generator().manual_seed(0)
    centres = (torch.rand(500, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT])).tolist()
    for x, y in centres:
        found = match(targets_at((x * STRIDE, y * STRIDE, 20.0, 20.0)), [(20.0, 20.0)])
        assert cells(found) == cells_by_rule(x, y)
        assert 1 <= len(found.rows) <= 3
        assert all(-0.5 <= x - column <= 1.5 and -0.5 <= y - row <= 1.5 for column, row in cells(found)), "out of the decoder's reach"


@pytest.mark.parametrize("x", [0.0, float(WIDTH)])
@pytest.mark.parametrize("y", [0.0, float(HEIGHT)])
def test_a_centre_on_the_edge_of_the_image_stays_on_the_map(x, y):
    found = match(targets_at((x * STRIDE, y * STRIDE, 20.0, 20.0)), [(20.0, 20.0)])
    assert (min(int(x), WIDTH - 1), min(int(y), HEIGHT - 1)) in cells(found)
    assert all(0 <= column < WIDTH and 0 <= row < HEIGHT for column, row in cells(found))
    assert len(found.rows) <= 3


@pytest.mark.parametrize(
    ("box", "anchors"),
    [
        ((20.0, 20.0), [0, 1]),
        ((39.9, 39.9), [0, 1]),
        ((5.1, 5.1), [0]),
        ((41.0, 10.0), [0, 1]),
        ((80.0, 20.0), [1]),
        ((160.1, 40.0), []),
        ((5.1, 79.0), [0]),
        ((5.0, 5.0), []),
        ((4.9, 20.0), []),
    ],
)
def test_an_anchor_matches_when_neither_side_differs_by_the_ratio(box, anchors):
    sizes = [(20.0, 20.0), (40.0, 15.0)]
    by_rule = [i for i, (w, h) in enumerate(sizes) if max(box[0] / w, w / box[0], box[1] / h, h / box[1]) < 4]
    found = match(targets_at((72.0, 40.0, *box)), sizes)
    assert sorted(set(found.anchors.tolist())) == by_rule == anchors


def test_every_anchor_that_fits_learns_in_every_cell():
    found = match(targets_at((70.0, 40.0, 20.0, 20.0)), [(20.0, 20.0), (100.0, 100.0), (30.0, 30.0)])
    assert sorted(zip(found.anchors.tolist(), found.columns.tolist(), strict=True)) == [(0, 3), (0, 4), (2, 3), (2, 4)]


def test_each_match_holds_the_box_it_came_from():
    targets = targets_at((20.0, 20.0, 16.0, 16.0), (100.0, 50.0, 22.0, 18.0), (60.0, 80.0, 400.0, 400.0))
    found = match(targets, [(20.0, 20.0)])
    assert set(found.images.tolist()) == {0, 1}
    for image, label, box in zip(found.images, found.labels, found.boxes_cxcywh, strict=True):
        assert label == targets.labels[image]
        assert torch.equal(box, targets.boxes_cxcywh[image])


def test_a_batch_without_boxes_matches_nothing():
    found = match(targets_at(), [(20.0, 20.0)])
    assert [len(part) for part in (found.images, found.anchors, found.rows, found.columns, found.labels)] == [0] * 5
    assert found.boxes_cxcywh.shape == (0, 4)

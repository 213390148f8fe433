"""Assignment of boxes to cells and anchors by the reference rule: in every cell, at borders, for every anchor."""

import math

import pytest
import torch

from matched_cells import MatchedCells, matched_cells
from yolor_ray.train.losses.assign import Targets, match_boxes
from yolor_ray.train.losses.grid import contains, grid_of

STRIDE, WIDTH, HEIGHT = 16, 10, 6


def targets_at(*boxes_cxcywh: tuple[float, float, float, float]) -> Targets:
    count = len(boxes_cxcywh)
    return Targets(torch.arange(count), torch.arange(count) % 3, torch.tensor(boxes_cxcywh).view(-1, 4))


def match(targets: Targets, anchors: list[tuple[float, float]], ratio: float = 4.0) -> MatchedCells:
    grid = grid_of([torch.zeros(1, len(anchors), HEIGHT, WIDTH, 1)], [STRIDE])
    [level] = matched_cells(match_boxes(targets, torch.tensor([anchors]), grid, anchor_ratio=ratio))
    return level


def cells(matches: MatchedCells) -> list[tuple[int, int]]:
    return sorted(zip(matches.columns.tolist(), matches.rows.tolist(), strict=True))


def cells_by_rule(x: float, y: float) -> list[tuple[int, int]]:
    """Return the cells (column, row) that learn a centre given in cells, by the reference rule."""
    column, row = min(math.floor(x), WIDTH - 1), min(math.floor(y), HEIGHT - 1)
    expected = [(column, row)]
    for value, size, step in ((x, WIDTH, (1, 0)), (y, HEIGHT, (0, 1))):
        if value % 1 < 0.5 and value > 1:
            expected.append((column - step[0], row - step[1]))
        if value % 1 > 0.5 and value < size - 1:
            expected.append((column + step[0], row + step[1]))
    return sorted(expected)


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
    matches = match(targets_at((centre[0] * STRIDE, centre[1] * STRIDE, 20.0, 20.0)), [(20.0, 20.0)])
    assert cells(matches) == expected


def test_every_centre_follows_the_rule_and_no_box_has_more_than_three_cells():
    generator = torch.Generator().manual_seed(0)
    centres = (torch.rand(500, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT])).tolist()
    for x, y in centres:
        matches = match(targets_at((x * STRIDE, y * STRIDE, 20.0, 20.0)), [(20.0, 20.0)])
        assert cells(matches) == cells_by_rule(x, y)
        assert 1 <= len(matches.rows) <= 3
        assert all(-0.5 <= x - column <= 1.5 and -0.5 <= y - row <= 1.5 for column, row in cells(matches)), (
            "beyond the range of the decoder"
        )


@pytest.mark.parametrize("x", [0.0, float(WIDTH)])
@pytest.mark.parametrize("y", [0.0, float(HEIGHT)])
def test_a_centre_on_the_edge_of_the_image_stays_on_the_map(x, y):
    matches = match(targets_at((x * STRIDE, y * STRIDE, 20.0, 20.0)), [(20.0, 20.0)])
    assert (min(int(x), WIDTH - 1), min(int(y), HEIGHT - 1)) in cells(matches)
    assert all(0 <= column < WIDTH and 0 <= row < HEIGHT for column, row in cells(matches))
    assert len(matches.rows) <= 3


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
def test_an_anchor_matches_if_neither_side_differs_by_the_ratio(box, anchors):
    sizes = [(20.0, 20.0), (40.0, 15.0)]
    by_rule = [i for i, (w, h) in enumerate(sizes) if max(box[0] / w, w / box[0], box[1] / h, h / box[1]) < 4]
    matches = match(targets_at((72.0, 40.0, *box)), sizes)
    assert sorted(set(matches.anchors.tolist())) == by_rule == anchors


def test_every_anchor_that_fits_learns_in_every_cell():
    matches = match(targets_at((70.0, 40.0, 20.0, 20.0)), [(20.0, 20.0), (100.0, 100.0), (30.0, 30.0)])
    assert sorted(zip(matches.anchors.tolist(), matches.columns.tolist(), strict=True)) == [(0, 3), (0, 4), (2, 3), (2, 4)]


def test_each_match_names_its_box():
    targets = targets_at((20.0, 20.0, 16.0, 16.0), (100.0, 50.0, 22.0, 18.0), (60.0, 80.0, 400.0, 400.0))
    matches = match(targets, [(20.0, 20.0)])
    assert set(matches.images.tolist()) == {0, 1}
    assert torch.equal(targets.images[matches.objects], matches.images)
    centres = targets.boxes_cxcywh[matches.objects, :2]
    offsets = centres / STRIDE - torch.stack((matches.columns, matches.rows), dim=1)
    assert ((offsets >= -0.5) & (offsets <= 1.5)).all()


def test_a_batch_without_boxes_matches_nothing():
    matches = match(targets_at(), [(20.0, 20.0)])
    assert [len(indices) for indices in (matches.objects, matches.images, matches.anchors, matches.rows, matches.columns)] == [0] * 5


def test_the_grid_lists_the_cells_level_by_level_then_by_anchor_row_and_column():
    grid = grid_of([torch.zeros(1, 2, 2, 3, 1), torch.zeros(1, 2, 1, 2, 1)], [8, 16])
    assert grid.cells.tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]] * 2 + [[0, 0], [1, 0]] * 2
    assert grid.anchors.tolist() == [0] * 6 + [1] * 6 + [2, 2, 3, 3]
    assert grid.strides.tolist() == [8.0] * 12 + [16.0] * 4
    assert grid.centres[4].tolist() == [12.0, 12.0] and grid.centres[13].tolist() == [24.0, 8.0]
    assert (grid.level_starts.tolist(), grid.level_sides.tolist()) == ([0, 12], [[3.0, 2.0], [2.0, 1.0]])


def test_a_small_box_contains_a_centre_if_it_counts_as_large_as_a_cell():
    grid = grid_of([torch.zeros(1, 1, 4, 4, 1)], [8])
    tiny = torch.tensor([[9.0, 9.0, 1.0, 1.0]])
    assert contains(tiny, grid, torch.tensor([1.0])).sum() == 0
    assert contains(tiny, grid, grid.strides).nonzero().tolist() == [[0, 5]]


def test_a_grid_of_validation_serves_the_gradients_of_training():
    raw = [torch.rand(1, 1, 5, 7, 1)]
    with torch.inference_mode():
        grid = grid_of(raw, [8])
    assert grid_of(raw, [8]) is grid and not grid.cells.is_inference()


def test_the_targets_of_some_images_are_those_of_a_batch_of_these_images():
    instances = torch.zeros(3, 8, 8, dtype=torch.int32)
    instances[0, :4], instances[1, 2:5], instances[1, 6], instances[2, 1] = 1, 2, 3, 4
    targets = Targets(
        torch.tensor([0, 1, 1, 2]),
        torch.tensor([5, 6, 7, 8]),
        torch.arange(16.0).reshape(4, 4),
        boxes_known=torch.tensor([True, False, True]),
        classes_known=torch.tensor([[True, True], [True, False], [False, True]]),
        members=torch.tensor([0, 1, 0]),
        keypoints=torch.arange(24.0).reshape(4, 2, 3),
        identities=torch.tensor([1, -1, 2, 3]),
        has_mask=torch.tensor([True, True, False, True]),
        instances=instances,
        image_labels=torch.tensor([[0.0], [1.0], [0.5]]),
        soft_labels=torch.arange(8.0).reshape(4, 2),
        unsure_images=torch.tensor([0, 2]),
        unsure_cxcywh=torch.arange(8.0).reshape(2, 4),
    )
    part = targets.of_images(torch.tensor([1, 2]))
    assert part.images.tolist() == [0, 0, 1] and part.labels.tolist() == [6, 7, 8]
    assert torch.equal(part.boxes_cxcywh, targets.boxes_cxcywh[1:]) and torch.equal(part.keypoints, targets.keypoints[1:])
    assert part.identities.tolist() == [-1, 2, 3] and part.has_mask.tolist() == [True, False, True]
    assert part.classes_known.tolist() == [[True, False], [False, True]]
    assert part.boxes_known.tolist() == [False, True] and part.image_labels.tolist() == [[1.0], [0.5]]
    assert torch.equal(part.instances, torch.where(instances[1:] > 0, instances[1:] - 1, 0)) and part.instances.dtype == torch.int32
    assert part.members.tolist() == [1, 0] and torch.equal(part.soft_labels, targets.soft_labels[1:])
    assert part.unsure_images.tolist() == [1] and part.unsure_cxcywh.tolist() == [[4.0, 5.0, 6.0, 7.0]]
    outer = targets.of_images(torch.tensor([0, 2]))
    assert outer.images.tolist() == [0, 1] and outer.labels.tolist() == [5, 8] and outer.unsure_images.tolist() == [0, 1]
    assert outer.instances[0].tolist() == instances[0].tolist() and outer.instances[1].unique().tolist() == [0, 2]
    assert targets.of_images(torch.arange(3)).instances.tolist() == instances.tolist()

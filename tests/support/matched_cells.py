"""The valid matches of each level, by anchor, row and column."""

from dataclasses import dataclass

from torch import Tensor

from yolor_ray.train.losses.assign import Matches


@dataclass(frozen=True)
class MatchedCells:
    """Matches of one level."""

    objects: Tensor
    images: Tensor
    anchors: Tensor
    rows: Tensor
    columns: Tensor


def matched_cells(matches: Matches) -> list[MatchedCells]:
    grid, levels = matches.grid, len(matches.grid.level_strides)
    anchors_per_level = (int(grid.anchors.max()) + 1) // levels
    of_level = []
    for level in range(levels):
        own = matches.valid & (grid.anchors[matches.predictions] // anchors_per_level == level)
        predictions = matches.predictions[own]
        columns, rows = grid.cells[predictions].long().unbind(dim=1)
        anchors = grid.anchors[predictions] % anchors_per_level
        of_level.append(MatchedCells(matches.objects[own], matches.images[own], anchors, rows, columns))
    return of_level

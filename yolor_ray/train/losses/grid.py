"""Places of the predictions of an image, of all levels at once.

Legend: A anchors per cell, L levels, P predictions of an image: level by level, then by anchor, row and column. N boxes.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NEIGHBOURS = ((0.0, 0.0), (-1.0, 0.0), (0.0, -1.0), (1.0, 0.0), (0.0, 1.0))


@dataclass(frozen=True)
class Grid:
    """Cells of the predictions, and the numbers of each level. All tensors are constants on the device of the predictions."""

    cells: Float[Tensor, "P 2"]
    """Column and row of each prediction, in the cells of its level."""
    centres: Float[Tensor, "P 2"]
    """Centre of the cell of each prediction in pixels."""
    centres_ltrb: Float[Tensor, "P 4"]
    """The same as a box without area: distances from the origin."""
    order: Int[Tensor, "P"]
    """Index of each prediction: 0, 1, …."""
    strides: Float[Tensor, "P"]
    """Pixels per cell."""
    anchors: Int[Tensor, "P"]
    """Index among the L · A anchors of all levels."""
    level_sides: Float[Tensor, "L 2"]
    """Columns and rows of each level."""
    level_strides: Float[Tensor, "L"]
    """Pixels per cell of each level."""
    level_starts: Int[Tensor, "L"]
    """First prediction of each level."""
    neighbours: Float[Tensor, "5 2"]
    """A cell and its left, upper, right and lower neighbour: column and row relative to the cell."""


def grid_of(raw: Sequence[Float[Tensor, "B A _ _ F"]], strides: Sequence[int]) -> Grid:
    """Return the grid of the raw outputs of all levels."""
    shapes = tuple((level.shape[1], level.shape[2], level.shape[3]) for level in raw)
    return _make_grid(shapes, tuple(strides), raw[0].device)


@functools.lru_cache(maxsize=64)
def _make_grid(shapes: tuple[tuple[int, int, int], ...], strides: tuple[int, ...], device: torch.device) -> Grid:
    """Make the grid of levels of A anchors, rows and columns; a few sizes of the network input take turns in a run."""
    # A tensor that validation makes in inference mode could not be used for gradients later.
    with torch.inference_mode(False):
        places = [torch.cartesian_prod(*map(torch.arange, shape)) for shape in shapes]
        cells = torch.cat([level[:, 1:].flip(1) for level in places]).float()
        counts = [len(level) for level in places]
        stride = torch.cat([torch.full((count,), float(stride)) for count, stride in zip(counts, strides, strict=True)])
        # One row of x and one of y, on which a CPU computes fast.
        centres = ((cells.T + 0.5) * stride).contiguous().T
        grid = Grid(
            cells=cells,
            centres=centres,
            centres_ltrb=torch.cat((-centres, centres), dim=1),
            order=torch.arange(len(cells)),
            strides=stride,
            anchors=torch.cat([level[:, 0] + index * shape[0] for index, (level, shape) in enumerate(zip(places, shapes, strict=True))]),
            level_sides=torch.tensor([(columns, rows) for _, rows, columns in shapes], dtype=torch.float32),
            level_strides=torch.tensor(strides, dtype=torch.float32),
            level_starts=torch.tensor([sum(counts[:level]) for level in range(len(counts))]),
            neighbours=torch.tensor(NEIGHBOURS),
        )
        return Grid(**{name: tensor.to(device) for name, tensor in vars(grid).items()})


def contains(boxes_cxcywh: Float[Tensor, "N 4"], grid: Grid, smallest_px: Float[Tensor, "#P"]) -> Bool[Tensor, "N P"]:
    """Return True where the centre of a prediction's cell lies in a box.

    Args:
        boxes_cxcywh: boxes in pixels.
        grid: the P predictions.
        smallest_px: side that a smaller box counts for, so that every box inside the image contains a centre; for all predictions or each.
    """
    centres, sizes = boxes_cxcywh[:, None].chunk(2, dim=-1)
    reach = torch.maximum(sizes, smallest_px[:, None]) / 2
    across, along = ((grid.centres - centres).abs() <= reach).unbind(dim=-1)
    return across & along

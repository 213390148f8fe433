"""Fit anchors to the boxes of a dataset, and measure the share of boxes that anchors cover.

Legend: N boxes, L levels, A anchors per cell.
"""

import numpy as np

FIT_ITERATIONS = 300
MAX_BOXES = 100_000
"""Boxes that anchors are fitted to and measured on; more cost minutes and move the anchors by less than another seed."""
REFERENCE_CELLS = 4
"""Side of the boxes of a level, cells: the levels divide the sizes at half an octave above and below."""


def best_possible_recall(sides: np.ndarray, anchors: np.ndarray, *, anchor_ratio: float) -> float:
    """Return the share of boxes, 0..1, that at least one anchor matches; 1 if there are no boxes.

    Args:
        sides: (N, 2) widths and heights of boxes in pixels.
        anchors: (…, 2) widths and heights of anchors in pixels.
        anchor_ratio: limit of the ratio between box side and anchor side, either way.
    """
    if len(sides) == 0:
        return 1.0
    ratio = sides[:, None] / anchors.reshape(-1, 2)[None]
    return float((np.maximum(ratio, 1 / ratio).max(axis=-1).min(axis=-1) < anchor_ratio).mean())


def sample_sides(sides: np.ndarray, seed: int) -> np.ndarray:
    """Return the widths and heights (N, 2) of at most MAX_BOXES boxes, chosen by the seed; all of them where there are no more."""
    if len(sides) <= MAX_BOXES:
        return sides
    return sides[np.random.default_rng(seed).choice(len(sides), MAX_BOXES, replace=False)]


def fit_anchors(sides: np.ndarray, levels: int, per_level: int, *, strides: tuple[int, ...], seed: int) -> np.ndarray:
    """Return (L, A, 2) anchors in pixels: k-means on the logarithms of the sides of each level's boxes, ascending by area.

    A box belongs to the level whose reference side, `REFERENCE_CELLS` cells, is nearest to the square root of its area. The anchors of a
    level with fewer distinct boxes than anchors are spread around the mean of its boxes, or around the reference side.

    Args:
        sides: (N, 2) widths and heights of boxes in pixels.
        levels: L.
        per_level: A.
        strides: pixels per cell of each level.
        seed: seed of the random restarts of empty clusters.
    """
    logs = np.log(np.maximum(sides, 2.0).astype(np.float64))
    references = np.log(REFERENCE_CELLS * np.array(strides[:levels], np.float64))
    level_of = np.abs(logs.mean(axis=1)[:, None] - references[None]).argmin(axis=1)
    rng = np.random.default_rng(seed)
    centres = np.concatenate([_fit_level(logs[level_of == level], references[level], per_level, rng) for level in range(levels)])
    by_area = centres[np.argsort(centres.sum(axis=1), kind="stable")]
    return np.exp(by_area).reshape(levels, per_level, 2).astype(np.float32)


def _fit_level(logs: np.ndarray, reference: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return (A, 2) logarithms of the anchors of a level with boxes `logs` (N, 2)."""
    if len(np.unique(logs, axis=0)) >= count:
        return _k_means(logs, count, rng)
    middle = logs.mean(axis=0) if len(logs) else np.full(2, reference)
    return middle + np.log(2) * ((np.arange(count) - (count - 1) / 2) / count)[:, None]


def _k_means(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return `count` cluster centres by Lloyd's algorithm, started from quantiles of size; an empty cluster restarts at a random point."""
    order = np.argsort(points.sum(axis=1), kind="stable")
    centres = points[order[np.linspace(0, len(points) - 1, count + 2)[1:-1].astype(int)]]
    for _ in range(FIT_ITERATIONS):
        nearest = ((points[:, None] - centres[None]) ** 2).sum(axis=-1).argmin(axis=1)
        new_centres = np.stack(
            [points[nearest == k].mean(axis=0) if (nearest == k).any() else points[rng.integers(len(points))] for k in range(count)]
        )
        if np.allclose(new_centres, centres):
            break
        centres = new_centres
    return centres

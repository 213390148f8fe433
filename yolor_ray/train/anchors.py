"""Fit anchors to the boxes of a dataset, and measure the share of boxes that anchors cover.

Legend: N boxes, L levels, A anchors per cell.
"""

import numpy as np

FIT_ITERATIONS = 300


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


def fit_anchors(sides: np.ndarray, levels: int, per_level: int, *, strides: tuple[int, ...], seed: int) -> np.ndarray:
    """Return (L, A, 2) anchors in pixels, from k-means on the logarithms of box sides; small anchors go to fine levels.

    With fewer distinct boxes than anchors, the anchors are spread around the mean of the boxes, a factor of two per level.

    Args:
        sides: (N, 2) widths and heights of boxes in pixels.
        levels: L.
        per_level: A.
        strides: pixels per cell of each level.
        seed: seed of the random restarts of empty clusters.
    """
    count = levels * per_level
    logs = np.log(np.maximum(sides, 2.0).astype(np.float64))
    if len(np.unique(logs, axis=0)) < count:
        return _spread(logs, levels, per_level, strides)
    centres = _k_means(logs, count, np.random.default_rng(seed))
    by_area = centres[np.argsort(centres.sum(axis=1), kind="stable")]
    return np.exp(by_area).reshape(levels, per_level, 2).astype(np.float32)


def _spread(logs: np.ndarray, levels: int, per_level: int, strides: tuple[int, ...]) -> np.ndarray:
    middle = np.exp(logs.mean(axis=0)) if len(logs) else np.full(2, 4.0 * strides[levels // 2])
    factors = 2.0 ** (np.arange(levels * per_level) / per_level - (levels - 1) / 2)
    return (factors[:, None] * middle).reshape(levels, per_level, 2).astype(np.float32)


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

"""Draw the training curves of a run as PNG bytes."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from yolor_ray.report.plots import INK, colour, new_figure, png_bytes, style_axes

PANELS = {
    "Loss": ("loss", "val_loss", "box", "objectness", "cls", "classify", "embed", "segment", "pose"),
    "Accuracy": ("AP", "AP50", "classify/mAP", "embed/mAP", "segment/AP", "pose/AP"),
    "Learning rate": ("lr",),
    "Images per second": ("images_per_s",),
}
"""Keys of the rows of `metrics.jsonl` that each panel shows."""
MARKED_POINTS = 30
"""Curves with fewer points have markers, as a single point is no line."""
MARGIN, LEAST_MARGIN = 0.05, 0.005
"""Room above and below the curves of accuracy: a share of their range, and its least value."""


def curves_png(rows: Sequence[dict[str, Any]]) -> bytes:
    """Draw losses, accuracy, learning rate and speed over epochs, from the rows of `metrics.jsonl`; NaN and infinity are left out."""
    figure = new_figure(13, 7)
    panels = figure.subplots(2, 2)
    epochs = [row["epoch"] for row in rows]
    for axes, (title, keys) in zip(panels.flat, PANELS.items(), strict=True):
        style_axes(axes, title, "epoch")
        finite = {key: [(row["epoch"], row[key]) for row in rows if math.isfinite(row.get(key, math.nan))] for key in keys}
        curves = {key: points for key, points in finite.items() if points}
        for label, (key, points) in enumerate(curves.items()):
            marker = "o" if len(points) < MARKED_POINTS else ""
            axes.plot(*zip(*points, strict=True), color=colour(label), label=key, marker=marker, markersize=3.5)
        axes.set_xlim(min(epochs, default=0) - 0.5, max(epochs, default=0) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(curves) > 1:
            axes.legend(frameon=False, labelcolor=INK, loc="upper left", bbox_to_anchor=(1, 1))
    panels[0, 0].set_yscale("log")
    _fit_accuracy(panels[0, 1])
    panels[1, 1].set_ylim(bottom=0)
    return png_bytes(figure)


def _fit_accuracy(axes: Axes) -> None:
    """Fit the limits to the measured values; -1 means that there was nothing to measure."""
    values = [float(value) for line in axes.lines for value in np.asarray(line.get_ydata()) if value >= 0]
    if values:
        margin = max(MARGIN * (max(values) - min(values)), LEAST_MARGIN)
        axes.set_ylim(min(values) - margin, max(values) + margin)

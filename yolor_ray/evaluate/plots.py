"""Draw training curves and precision-recall curves as PNG bytes.

Figures are made without pyplot: it keeps global state and wants the main thread, and these are drawn in workers.
"""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOURS = ("#2f8dff", "#ff9f0a", "#ff4d6d", "#1fc16b", "#b57bff", "#ff7ac6", "#00c2c7", "#c5d93b", "#9c6b4a", "#8ea2ff")
CURVES = {
    "Loss": ("loss", "box", "objectness", "classes", "classify", "embed", "segment", "pose"),
    "Accuracy": ("AP", "AP50", "classify/mAP", "embed/mAP", "segment/AP", "pose/AP"),
    "Learning rate": ("lr",),
    "Images per second": ("images_per_s",),
}
INK, GRID = "#24292f", "#d8dee4"


def colour(label: int) -> str:
    """Return the colour of a class; colours repeat after ten classes."""
    return COLOURS[label % len(COLOURS)]


def curves_png(rows: Sequence[dict[str, Any]]) -> bytes:
    """Draw losses, accuracy, learning rate and speed over epochs, from the rows of metrics.jsonl; NaN and infinity are left out."""
    figure = new_figure(11, 7)
    panels = figure.subplots(2, 2)
    epochs = [row["epoch"] for row in rows]
    for axes, (title, keys) in zip(panels.flat, CURVES.items(), strict=True):
        plain_axes(axes, title, "epoch")
        known = {key: [(row["epoch"], row[key]) for row in rows if math.isfinite(row.get(key, math.nan))] for key in keys}
        curves = {key: points for key, points in known.items() if points}
        for label, (key, points) in enumerate(curves.items()):
            # A single point is no line: few points get marks.
            axes.plot(*zip(*points, strict=True), color=colour(label), label=key, marker="o" if len(points) < 30 else "", markersize=3.5)
        axes.set_xlim(min(epochs, default=0) - 0.5, max(epochs, default=0) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(curves) > 1:
            axes.legend(frameon=False, labelcolor=INK)
    panels[0, 0].set_yscale("log")
    panels[0, 1].set_ylim(0, 1)
    panels[1, 1].set_ylim(bottom=0)
    return png_bytes(figure)


def precision_recall_png(precision50: np.ndarray, precision: np.ndarray, classes: Sequence[str]) -> bytes:
    """Draw precision over recall, (101, K) each: every class at IoU .50, and the mean of all at .50 and at .50 to .95."""
    figure = new_figure(6.4, 5.2)
    axes = figure.subplots()
    plain_axes(axes, "Precision and recall", "recall")
    recall = np.linspace(0, 1, len(precision50))
    measured = [k for k in range(len(classes)) if not np.isnan(precision50[0, k])]
    # Names of many classes would cover the curves.
    named = len(measured) <= len(COLOURS)
    for k in measured:
        label = f"{classes[k]}  {precision50[:, k].mean():.3f}" if named else None
        axes.plot(recall, precision50[:, k], color=colour(k), linewidth=1.6 if named else 0.5, alpha=1 if named else 0.5, label=label)
    for values, style, name in ((precision50, "-", "all, IoU .50"), (precision, "--", "all, IoU .50 to .95")):
        if measured:
            mean = values[:, measured].mean(axis=1)
            axes.plot(recall, mean, color=INK, linestyle=style, linewidth=2, label=f"{name}  {mean.mean():.3f}")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="precision")
    if measured:
        axes.legend(frameon=False, loc="lower left", labelcolor=INK, title="average precision", alignment="left")
    return png_bytes(figure)


def new_figure(width: float, height: float, layout: Any = "constrained") -> Figure:
    """Return a white figure of so many inches, 110 pixels each."""
    figure = Figure(figsize=(width, height), dpi=110, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def plain_axes(axes: Axes, title: str, x_label: str) -> None:
    """Give a panel its title and the looks of all: a light grid, no frame."""
    axes.set_title(title, loc="left", color=INK, fontsize=12, fontweight="bold")
    axes.set_xlabel(x_label, color=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(colors=INK, length=0)


def png_bytes(figure: Figure) -> bytes:
    """Return the figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()

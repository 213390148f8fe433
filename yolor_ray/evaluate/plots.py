"""Draw training curves, precision-recall curves and predictions as PNG bytes.

Figures are made without pyplot: it keeps global state and wants the main thread, and these are drawn in workers.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Stroke, withStroke
from matplotlib.ticker import MaxNLocator

from yolor_ray.data.records import Objects

COLOURS = ("#2f8dff", "#ff9f0a", "#ff4d6d", "#1fc16b", "#b57bff", "#ff7ac6", "#00c2c7", "#c5d93b", "#9c6b4a", "#8ea2ff")
CURVES = {
    "Loss": ("loss", "box", "objectness", "classes"),
    "Accuracy": ("AP", "AP50"),
    "Learning rate": ("lr",),
    "Images per second": ("images_per_s",),
}
INK, GRID = "#24292f", "#d8dee4"


@dataclass(frozen=True)
class Picture:
    """One image with what was found and what is there."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    boxes_xyxy: np.ndarray
    """(D, 4): detections in pixels of the image."""
    confidences: np.ndarray
    """(D,)"""
    labels: np.ndarray
    """(D,)"""
    truth: Objects


def colour(label: int) -> str:
    """Return the colour of a class; colours repeat after ten classes."""
    return COLOURS[label % len(COLOURS)]


def curves_png(rows: Sequence[dict[str, Any]]) -> bytes:
    """Draw losses, accuracy, learning rate and speed over epochs, from the rows of metrics.jsonl."""
    figure = new_figure(11, 7)
    panels = figure.subplots(2, 2)
    epochs = [row["epoch"] for row in rows]
    for axes, (title, keys) in zip(panels.flat, CURVES.items(), strict=True):
        plain_axes(axes, title, "epoch")
        measured = [key for key in keys if any(key in row for row in rows)]
        for label, key in enumerate(measured):
            points = [(row["epoch"], row[key]) for row in rows if key in row]
            # A single point is no line: few points get marks.
            axes.plot(*zip(*points, strict=True), color=colour(label), label=key, marker="o" if len(points) < 30 else "", markersize=3.5)
        axes.set_xlim(min(epochs, default=0) - 0.5, max(epochs, default=0) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(measured) > 1:
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


def predictions_png(pictures: Sequence[Picture], classes: Sequence[str], columns: int = 3) -> bytes:
    """Draw a grid of images: detections in the colours of their classes, annotations dashed in white."""
    columns = max(1, min(columns, len(pictures)))
    rows = -(-len(pictures) // columns)
    aspect = float(np.median([p.image.shape[0] / p.image.shape[1] for p in pictures])) if pictures else 0.1
    cell, gap, foot = 4.6, 0.08, 0.42
    width, height = columns * (cell + gap) + gap, max(rows, 1) * (cell * aspect + gap) + gap + foot
    figure = new_figure(width, height, layout=None)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        left, top = gap + column * (cell + gap), gap + row * (cell * aspect + gap)
        axes = figure.add_axes((left / width, 1 - (top + cell * aspect) / height, cell / width, cell * aspect / height))
        _draw(axes, picture, classes, cell * 72)
    seen = sorted({int(label) for picture in pictures for label in (*picture.labels, *picture.truth.labels)})
    handles = [Line2D([], [], color=colour(label), linewidth=4, label=classes[label]) for label in seen[: len(COLOURS)]]
    handles.append(Line2D([], [], color="#8b949e", linewidth=1.6, linestyle=(0, (3, 2)), label="annotated"))
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, labelcolor=INK, fontsize=11)
    return png_bytes(figure)


def _draw(axes: Axes, picture: Picture, classes: Sequence[str], width_pt: float) -> None:
    height, width = picture.image.shape[:2]
    axes.imshow(picture.image, interpolation="antialiased")
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    for box in picture.truth.boxes_xyxy:
        outline = _box(axes, box, "white", 0.9)
        outline.set_linestyle((0, (4, 3)))
        outline.set_zorder(3)
    point = width / width_pt
    # Names on a crowd of small boxes hide the picture: colours and the legend tell enough there.
    sides = picture.boxes_xyxy[:, 2] - picture.boxes_xyxy[:, 0]
    named = 0 < len(sides) <= 40 and np.median(sides) >= 22 * point
    for box, confidence, label in sorted(zip(picture.boxes_xyxy, picture.confidences, picture.labels, strict=True), key=lambda d: d[1]):
        _box(axes, box, colour(int(label)), 1.7)
        if named:
            _name(axes, box, f"{classes[int(label)]} {confidence:.2f}", colour(int(label)), point)


def _box(axes: Axes, box: np.ndarray, edge: str, width: float) -> Rectangle:
    x1, y1, x2, y2 = box
    outline = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=edge, linewidth=width)
    outline.set_path_effects([withStroke(linewidth=width + 0.9, foreground="#00000066")])
    axes.add_patch(outline)
    return outline


def _name(axes: Axes, box: np.ndarray, text: str, edge: str, point: float) -> None:
    above = box[1] >= 10 * point
    x, y = max(box[0], 0) + point, max(box[1], 0) + (-1.5 if above else 1.5) * point
    label = axes.text(x, y, text, fontsize=6.5, color="white", va="bottom" if above else "top", clip_on=True, zorder=5)
    label.set_bbox({"facecolor": edge, "edgecolor": "none", "pad": 0.8, "alpha": 0.85})
    label.set_path_effects([Stroke(linewidth=1.2, foreground="#00000080"), withStroke(linewidth=0)])


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

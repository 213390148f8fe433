"""Draw the charts of an evaluation's page as SVG."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from yolor_ray.evaluate.diagnosis.curves import CalibrationBin, Curve
from yolor_ray.report.curves import PANELS
from yolor_ray.report.plots import COLOURS, INK, colour, new_figure, style_axes, svg_text

WIDTH, HEIGHT = 4.6, 3.2
"""Size of a chart, inches."""
MAX_POINTS = 200
"""Most points of a curve."""


@dataclass(frozen=True)
class Chart:
    """A chart with its legend, which stands under the chart."""

    title: str
    svg: Markup
    legend: Sequence[tuple[str, str]] = field(default_factory=tuple)
    """Colour and name of each curve."""


def precision_recall_chart(curves: Sequence[Curve | None], classes: Sequence[str]) -> Chart:
    """Draw precision over recall at IoU .50, one curve for each class."""
    points = [None if curve is None else (curve.recall, curve.precision) for curve in curves]
    names = [f"{name} {curve.average_precision:.3f}" if curve else name for name, curve in zip(classes, curves, strict=True)]
    return _class_chart("Precision and recall (AP50)", "recall", "precision", points, names)


def f1_chart(curves: Sequence[Curve | None], classes: Sequence[str], thresholds: np.ndarray) -> Chart:
    """Draw the F1 score over the confidence threshold, one curve for each class, with a dot at the best confidence, (K,) `thresholds`."""
    points = [None if curve is None else (curve.confidences, curve.f1) for curve in curves]
    names, dots = list(classes), []
    for label, (curve, threshold) in enumerate(zip(curves, thresholds.tolist(), strict=True)):
        if curve and (taken := curve.taken(threshold)):
            names[label] += f" {curve.f1[taken - 1]:.3f} at {threshold:.2f}"
            dots.append((label, threshold, curve.f1[taken - 1]))
    return _class_chart("F1 score by confidence (best)", "confidence", "F1 score", points, names, dots)


def _class_chart(
    title: str,
    x_label: str,
    y_label: str,
    points: Sequence[tuple[np.ndarray, np.ndarray] | None],
    names: Sequence[str],
    dots: Sequence[tuple[int, float, float]] = (),
) -> Chart:
    """Draw one curve for each class, with dots of (label, x, y); curves of many classes are thin, without dots and names."""
    axes = _axes(x_label, y_label)
    drawn = [label for label, curve in enumerate(points) if curve is not None]
    few = len(drawn) <= len(COLOURS)
    for label in drawn:
        x, y = points[label] or (np.zeros(0), np.zeros(0))
        kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), MAX_POINTS)).round().astype(int))
        axes.plot(x[kept], y[kept], color=colour(label), linewidth=1.6 if few else 0.6, alpha=1 if few else 0.6)
    for label, x_best, y_best in dots if few else ():
        axes.plot(x_best, y_best, "o", color=colour(label), markersize=4)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    return Chart(title, svg_text(axes.figure), [(colour(label), names[label]) for label in drawn] if few else ())


def calibration_chart(bins: Sequence[CalibrationBin]) -> Chart:
    """Draw the share of right detections over their confidence; on the diagonal, both are equal."""
    axes = _axes("confidence", "share of right detections")
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (3, 3)))
    axes.plot([item.confidence for item in bins], [item.precision for item in bins], color=colour(0), marker="o", markersize=4)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    return Chart("Calibration", svg_text(axes.figure), [(colour(0), "detections of all classes"), ("currentColor", "perfectly calibrated")])


def training_charts(history: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Draw loss and accuracy over the epochs; nothing without a history."""
    return [_history_chart(title, history) for title in ("Loss", "Accuracy") if history]


def _history_chart(title: str, history: Sequence[Mapping[str, Any]]) -> Chart:
    axes = _axes("epoch", "")
    legend: list[tuple[str, str]] = []
    for key in PANELS[title]:
        points = [(row["epoch"], row[key]) for row in history if math.isfinite(row.get(key, math.nan))]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour(len(legend)), marker="o" if len(points) < 2 else "", markersize=4)
            legend.append((colour(len(legend)), key))
    if title == "Loss" and legend:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(ScalarFormatter())
    axes.set_xlim(min(row["epoch"] for row in history) - 0.5, max(row["epoch"] for row in history) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return Chart(title, svg_text(axes.figure), legend)


def _axes(x_label: str, y_label: str) -> Axes:
    axes = new_figure(WIDTH, HEIGHT).subplots()
    style_axes(axes, "", x_label)
    axes.set_ylabel(y_label, color=INK)
    return axes

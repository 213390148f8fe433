"""Picture of the learning benchmark: AP by minute of training."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from yolor_ray.benchmark.curves import Curve, mean_curve
from yolor_ray.report.plots import INK, colour, new_figure, png_bytes, style_axes


def learning_png(curves: Sequence[Curve], compared: Sequence[Curve]) -> bytes:
    """Draw the mean of the seeds' curves with its interval, single seeds as thin lines, and the compared curves as dashed lines."""
    figure = new_figure(9, 5.5)
    axes = figure.subplots()
    style_axes(axes, "AP by minute of training", "minutes of training")
    axes.set_ylabel("AP", color=INK)
    _draw_mean(axes, curves)
    for index, curve in enumerate(compared, start=1):
        axes.plot(*_xy(curve), color=colour(index), linestyle="--", marker="o", markersize=3.5, zorder=2, label=_legend_text(curve.name))
    drawn = [point for curve in (*curves, *compared) for point in curve.points]
    axes.set_xlim(0, 1.03 * max(point.minute for point in drawn))
    top = 1.1 * max(0.05, np.nanmax([0, *(point.AP for point in drawn)]))
    # The margin below 0 shows whole markers of an AP of 0.
    axes.set_ylim(-0.015 * top, min(top, 1.01))
    axes.legend(frameon=False, labelcolor=INK, loc="best")
    return png_bytes(figure)


def _draw_mean(axes: Axes, curves: Sequence[Curve]) -> None:
    means, seeds = mean_curve(curves), len(curves)
    minutes = [mean.minute for mean in means]
    label = f"{_legend_text(curves[0].name)}: " + (f"mean of {seeds} seeds" if seeds > 1 else "one seed")
    axes.plot(minutes, [mean.AP.mean for mean in means], color=colour(0), marker="o", markersize=4, linewidth=2.2, zorder=3, label=label)
    if seeds > 1:
        lows, highs = [mean.AP.low for mean in means], [mean.AP.high for mean in means]
        axes.fill_between(minutes, lows, highs, color=colour(0), alpha=0.18, linewidth=0, label="95 % interval of the mean")
        for curve in curves:
            axes.plot(*_xy(curve), color=colour(0), linewidth=0.8, alpha=0.5)


def _xy(curve: Curve) -> tuple[list[float], list[float]]:
    return [point.minute for point in curve.points], [point.AP for point in curve.points]


def _legend_text(name: str) -> str:
    """Return a name for matplotlib, which reads text between dollar signs as a formula and hides names after an underscore."""
    return name.replace("$", r"\$").lstrip("_")

"""Draw the precision-recall curves of all classes as PNG.

The curves are those of `CocoResult`: precision at 101 recalls, averaged over IoU thresholds or at IoU .50.
"""

from collections.abc import Sequence

import numpy as np

from yolor_ray.report.plots import COLOURS, INK, colour, new_figure, png_bytes, style_axes


def precision_recall_png(precision50: np.ndarray, precision: np.ndarray, classes: Sequence[str]) -> bytes:
    """Draw precision over recall, (101, K) each: every class at IoU .50, and the mean of all at .50 and at .50 to .95."""
    figure = new_figure(6.4, 5.2)
    axes = figure.subplots()
    style_axes(axes, "Precision and recall", "recall")
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

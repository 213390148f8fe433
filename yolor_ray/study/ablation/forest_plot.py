"""Draw the differences between variants as a forest plot: a row for each variant, a panel for each setting."""

from collections.abc import Iterable, Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from yolor_ray.config.variants import VARIANTS
from yolor_ray.report.plots import COLOURS, INK, new_figure, plain_axes, png_bytes
from yolor_ray.study.ablation.summary import Row, Summary
from yolor_ray.study.paper_results import paper_difference

BEYOND, WITHIN, FAINT, PAPER = COLOURS[0], "#6e7781", "#b6bdc5", COLOURS[1]
UNJUDGED: Literal[":"] = ":"
"""Line of an interval that says nothing about seeds."""
PANELS_ACROSS = 2


def differences_png(summary: Summary) -> bytes | None:
    """Draw the difference in AP of every variant, in points; None where nothing can be compared."""
    rows = {setting: summary.rows_of(setting) for setting in summary.study.settings}
    panels = {setting: found for setting, found in rows.items() if any(row.paired for row in found)}
    if not panels:
        return None
    across = min(PANELS_ACROSS, len(panels))
    down = -(-len(panels) // across)
    tall = len(summary.study.variants) - 1
    figure = new_figure(2 + 5.6 * across, 1.1 + down * (0.9 + 0.42 * tall), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for axes, (setting, found) in zip(grid.flat, panels.items(), strict=False):
        _forest(axes, setting or "Difference in AP to the baseline", found)
    for axes in list(grid.flat)[len(panels) :]:
        axes.remove()
    figure.legend(handles=_legend(panels.values()), loc="outside lower center", ncols=2 * across, frameon=False, labelcolor=INK)
    return png_bytes(figure)


def _forest(axes: Axes, heading: str, rows: Sequence[Row]) -> None:
    # Between dollars there would be a formula.
    plain_axes(axes, heading.replace("$", r"\$"), "points of AP")
    axes.grid(visible=False, axis="y")
    axes.axvline(0, color=INK, linewidth=1)
    for place, row in enumerate(rows):
        if row.paired:
            _variant(axes, place, row)
        if VARIANTS[row.variant].paper:
            axes.plot(paper_difference(VARIANTS[row.variant].paper), place - 0.25, "D", color=PAPER, fillstyle="none", markersize=5)
    axes.set_yticks(range(len(rows)), [VARIANTS[row.variant].title for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.xaxis.set_tick_params(labelbottom=True)


def _variant(axes: Axes, place: int, row: Row) -> None:
    found = row.differences["AP"]
    shade = BEYOND if row.beyond_noise("AP") else WITHIN
    style = "-" if row.judged else UNJUDGED
    axes.plot([100 * found.low, 100 * found.high], [place, place], color=shade, linestyle=style, linewidth=2.2, solid_capstyle="butt")
    axes.plot(100 * found.mean, place, "o", color=shade, markersize=7)
    axes.plot([100 * value for value in row.seed_differences], [place + 0.25] * len(row.paired), "o", color=FAINT, markersize=3.5)


def _legend(panels: Iterable[Sequence[Row]]) -> list[Line2D]:
    """Explain what is there to see."""
    judged = [row.judged for rows in panels for row in rows if row.paired]
    lines = [_line(BEYOND, "-", "larger than noise (95 % interval)"), _line(WITHIN, "-", "not larger than noise")] if any(judged) else []
    if not all(judged):
        lines.append(_line(WITHIN, UNJUDGED, "one seed: interval of images alone"))
    return [
        *lines,
        Line2D([], [], color=FAINT, label="single seeds", marker="o", markersize=3.5, linestyle=""),
        Line2D([], [], color=PAPER, label="the paper's (COCO, one run)", marker="D", fillstyle="none", linestyle="", markersize=5),
    ]


def _line(shade: str, style: Literal["-", ":"], label: str) -> Line2D:
    return Line2D([], [], color=shade, linestyle=style, marker="o", linewidth=2.2, label=label)

"""Forest plot of the differences between variants and the baseline: a row for each variant, a panel for each setting."""

from collections.abc import Iterable, Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from yolor_ray.config.variants import VARIANTS
from yolor_ray.report.plots import COLOURS, INK, new_figure, png_bytes, style_axes
from yolor_ray.study.ablation.summary import Summary, SummaryRow
from yolor_ray.study.paper_results import paper_difference

BEYOND_NOISE, WITHIN_NOISE, SEED, PAPER = COLOURS[0], "#6e7781", "#b6bdc5", COLOURS[1]
"""Colours of the intervals, of single seeds and of the paper's differences."""
UNTESTABLE: Literal[":"] = ":"
"""Line style of an interval over images alone, without noise between seeds."""
COLUMNS = 2
"""Maximum number of panels in a row."""


def differences_png(summary: Summary) -> bytes | None:
    """Draw the difference in AP of every variant, in points; None where nothing can be compared."""
    rows = {setting: summary.variant_rows(setting) for setting in summary.study.settings}
    panels = {setting: variants for setting, variants in rows.items() if any(row.paired for row in variants)}
    if not panels:
        return None
    columns = min(COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    variant_count = len(summary.study.variants) - 1
    height = 1.1 + lines * (0.9 + 0.42 * variant_count)
    figure = new_figure(2 + 5.6 * columns, height, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (setting, variants) in zip(grid.flat, panels.items(), strict=False):
        _draw_panel(axes, setting or "Difference in AP to the baseline", variants)
    for axes in list(grid.flat)[len(panels) :]:
        axes.remove()
    figure.legend(handles=_legend(panels.values()), loc="outside lower center", ncols=2 * columns, frameon=False, labelcolor=INK)
    return png_bytes(figure)


def _draw_panel(axes: Axes, heading: str, rows: Sequence[SummaryRow]) -> None:
    # matplotlib reads text between dollar signs as a formula.
    style_axes(axes, heading.replace("$", r"\$"), "points of AP")
    axes.grid(visible=False, axis="y")
    axes.axvline(0, color=INK, linewidth=1)
    for y, row in enumerate(rows):
        if row.paired:
            _draw_variant(axes, y, row)
        if VARIANTS[row.variant].paper:
            axes.plot(paper_difference(VARIANTS[row.variant].paper), y - 0.25, "D", color=PAPER, fillstyle="none", markersize=5)
    axes.set_yticks(range(len(rows)), [VARIANTS[row.variant].title for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.xaxis.set_tick_params(labelbottom=True)


def _draw_variant(axes: Axes, y: int, row: SummaryRow) -> None:
    difference = row.differences["AP"]
    colour = BEYOND_NOISE if row.beyond_noise("AP") else WITHIN_NOISE
    style = "-" if row.testable else UNTESTABLE
    axes.plot([100 * difference.low, 100 * difference.high], [y, y], color=colour, linestyle=style, linewidth=2.2, solid_capstyle="butt")
    axes.plot(100 * difference.mean, y, "o", color=colour, markersize=7)
    axes.plot([100 * value for value in row.seed_differences], [y + 0.25] * len(row.paired), "o", color=SEED, markersize=3.5)


def _legend(panels: Iterable[Sequence[SummaryRow]]) -> list[Line2D]:
    """Return legend entries for the styles that occur in the panels."""
    testable = [row.testable for rows in panels for row in rows if row.paired]
    lines = []
    if any(testable):
        lines += [
            _line(BEYOND_NOISE, "-", "larger than noise (95 % interval)"),
            _line(WITHIN_NOISE, "-", "not larger than noise"),
        ]
    if not all(testable):
        lines.append(_line(WITHIN_NOISE, UNTESTABLE, "one seed: interval over images alone"))
    return [
        *lines,
        Line2D([], [], color=SEED, label="single seeds", marker="o", markersize=3.5, linestyle=""),
        Line2D([], [], color=PAPER, label="the paper (COCO, one run)", marker="D", fillstyle="none", linestyle="", markersize=5),
    ]


def _line(colour: str, style: Literal["-", ":"], label: str) -> Line2D:
    return Line2D([], [], color=colour, linestyle=style, marker="o", linewidth=2.2, label=label)

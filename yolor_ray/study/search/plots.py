"""Plot of a hyper-parameter search: AP over every varied setting, a panel for each."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from yolor_ray.config.dotted import format_value
from yolor_ray.config.search_space import Choice, Range
from yolor_ray.report.plots import COLOURS, INK, new_figure, png_bytes, style_axes
from yolor_ray.study.search.results import SearchTrialResult, ranked_trials

COLUMNS = 4
"""Maximum number of panels in a row."""
MARGIN = 0.05
"""Space on each side of a range, as a share of the range."""
MAX_LABEL_LENGTH = 16
"""Maximum length of a value under its panel; longer values are cut at the start, because URLs differ at the end."""
STYLES: dict[str, dict[str, Any]] = {
    "stopped early": {"color": "#8b949e", "marker": "o", "markersize": 5.5, "fillstyle": "none"},
    "finished": {"color": COLOURS[0], "marker": "o", "markersize": 5.5, "markeredgewidth": 0},
    "best": {"color": COLOURS[2], "marker": "*", "markersize": 15, "markeredgecolor": "white"},
}


def parameters_png(trials: Sequence[SearchTrialResult], space: Mapping[str, Choice | Range]) -> bytes:
    """Draw AP over each setting, in points: finished trials as dots, stopped ones as rings, the best finished one as a star.

    Rings far below the dots are drawn on the lower edge, so that the dots keep at least half of the height.
    """
    varied = {name: dimension for name, dimension in space.items() if isinstance(dimension, Range) or len(dimension.values) > 1}
    columns = max(min(COLUMNS, len(varied)), 1)
    lines = max(-(-len(varied) // columns), 1)
    figure = new_figure(max(3.4 * columns, 6), 0.6 + 2.7 * lines)
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
    for axes, (name, dimension) in zip(grid.flat, varied.items(), strict=False):
        _draw_panel(axes, name, dimension, trials)
    for axes in list(grid.flat)[len(varied) :]:
        axes.remove()
    for row in grid:
        row[0].set_ylabel("AP, points", color=INK)
    handles = [Line2D([], [], linestyle="", label=label, **style) for label, style in STYLES.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, labelcolor=INK)
    return png_bytes(figure)


def _draw_panel(axes: Axes, name: str, dimension: Choice | Range, trials: Sequence[SearchTrialResult]) -> None:
    style_axes(axes, name, "")
    axes.title.set_fontsize(10)
    axes.margins(y=0.08)
    finished = ranked_trials(trials, "finished")
    scores = [score for score, _ in finished]
    span = max(scores, default=0) - min(scores, default=0)
    # The finished trials keep at least half of the height.
    floor = min(scores) - span if span else 0
    groups = {"stopped early": ranked_trials(trials, "stopped"), "finished": finished[1:], "best": finished[:1]}
    for label, group in groups.items():
        values = [trial.values[name] for _, trial in group]
        x = [dimension.values.index(value) for value in values] if isinstance(dimension, Choice) else values
        axes.plot(x, [100 * max(score, floor) for score, _ in group], linestyle="", zorder=3, **STYLES[label])
    if isinstance(dimension, Choice):
        axes.set_xticks(range(len(dimension.values)), [_label(value) for value in dimension.values], parse_math=False)
        axes.set_xlim(-0.5, len(dimension.values) - 0.5)
    else:
        _scale(axes, dimension)


def _scale(axes: Axes, dimension: Range) -> None:
    """Scale the x axis to the full range, including values that no trial had."""
    if not dimension.log:
        margin = (dimension.high - dimension.low) * MARGIN
        axes.set_xlim(dimension.low - margin, dimension.high + margin)
        return
    axes.set_xscale("log")
    factor = (dimension.high / dimension.low) ** MARGIN
    axes.set_xlim(dimension.low / factor, dimension.high * factor)
    # Within one or two decades, powers of ten alone would be too few ticks.
    steps = (1, 2, 5) if dimension.high / dimension.low < 99 else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _label(value: Any) -> str:
    text = format_value(value)
    return text if len(text) <= MAX_LABEL_LENGTH else f"…{text[1 - MAX_LABEL_LENGTH :]}"

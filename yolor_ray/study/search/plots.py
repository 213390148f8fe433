"""Draw a hyper-parameter search: AP over every setting that was varied, a panel for each."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from yolor_ray.config.dotted import format_value
from yolor_ray.config.search_space import Choice, Range
from yolor_ray.report.plots import COLOURS, INK, new_figure, plain_axes, png_bytes
from yolor_ray.study.search.results import SearchTrialResult, measured

ACROSS = 4
EDGE = 0.05
"""Room beside a range, as a share of it."""
LONGEST = 16
"""Characters of a value below its panel; of URLs, the ends differ."""
STYLES: dict[str, dict[str, Any]] = {
    "stopped early": {"color": "#8b949e", "marker": "o", "markersize": 5.5, "fillstyle": "none"},
    "finished": {"color": COLOURS[0], "marker": "o", "markersize": 5.5, "markeredgewidth": 0},
    "best": {"color": COLOURS[2], "marker": "*", "markersize": 15, "markeredgecolor": "white"},
}


def parameters_png(tried: Sequence[SearchTrialResult], space: Mapping[str, Choice | Range]) -> bytes:
    """Draw AP over each setting, in points: finished trials as dots, stopped ones as rings, the best finished one as a star.

    Rings that would leave no room for the dots stand on the lower edge.
    """
    varied = {name: dimension for name, dimension in space.items() if isinstance(dimension, Range) or len(dimension.values) > 1}
    across = max(min(ACROSS, len(varied)), 1)
    down = max(-(-len(varied) // across), 1)
    figure = new_figure(max(3.4 * across, 6), 0.6 + 2.7 * down)
    grid = figure.subplots(down, across, sharey=True, squeeze=False)
    for axes, (name, dimension) in zip(grid.flat, varied.items(), strict=False):
        _panel(axes, name, dimension, tried)
    for axes in list(grid.flat)[len(varied) :]:
        axes.remove()
    for row in grid:
        row[0].set_ylabel("AP, points", color=INK)
    handles = [Line2D([], [], linestyle="", label=label, **style) for label, style in STYLES.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, labelcolor=INK)
    return png_bytes(figure)


def _panel(axes: Axes, name: str, dimension: Choice | Range, tried: Sequence[SearchTrialResult]) -> None:
    plain_axes(axes, name, "")
    axes.title.set_fontsize(10)
    axes.margins(y=0.08)
    finished = measured(tried, "finished")
    floor = _floor([score for score, _ in finished])
    trials = {"stopped early": measured(tried, "stopped"), "finished": finished[1:], "best": finished[:1]}
    for label, found in trials.items():
        values = [trial.values[name] for _, trial in found]
        places = [dimension.values.index(value) for value in values] if isinstance(dimension, Choice) else values
        axes.plot(places, [100 * max(score, floor) for score, _ in found], linestyle="", zorder=3, **STYLES[label])
    if isinstance(dimension, Choice):
        axes.set_xticks(range(len(dimension.values)), [_word(value) for value in dimension.values], parse_math=False)
        axes.set_xlim(-0.5, len(dimension.values) - 0.5)
    else:
        _scale(axes, dimension)


def _scale(axes: Axes, dimension: Range) -> None:
    """Show the whole range, whatever of it was tried."""
    if not dimension.log:
        edge = (dimension.high - dimension.low) * EDGE
        axes.set_xlim(dimension.low - edge, dimension.high + edge)
        return
    axes.set_xscale("log")
    edge = (dimension.high / dimension.low) ** EDGE
    axes.set_xlim(dimension.low / edge, dimension.high * edge)
    # Within one or two decades, powers of ten alone would be too few ticks.
    steps = (1, 2, 5) if dimension.high / dimension.low < 99 else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _floor(scores: Sequence[float]) -> float:
    """Return the lowest AP that is drawn in its place: the finished trials, whose AP are `scores`, get half of the height."""
    span = max(scores, default=0) - min(scores, default=0)
    return min(scores) - span if span else 0


def _word(value: Any) -> str:
    word = format_value(value)
    return word if len(word) <= LONGEST else f"…{word[1 - LONGEST :]}"

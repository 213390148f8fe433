"""Draw what implicit knowledge has learned (the paper's figure 9): priors on outputs by name, priors on features by their spread.

Legend: S seeds, A anchors per cell, F = 5 + K outputs per anchor, K classes, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from yolor_ray.config.variants import VARIANTS
from yolor_ray.report.plots import GRID, INK, colour, new_figure, plain_axes, png_bytes
from yolor_ray.study.ablation.summary import trials_of
from yolor_ray.study.results import Study

OUTPUTS = ("x", "y", "w", "h", "objectness")
NEUTRAL = {"add": 0.0, "concat": 0.0, "multiply": 1.0, "project": 1.0}
"""Where each operator changes nothing."""
NAMED_CLASSES = 12
"""More classes than these are drawn as one curve."""
NAME_LENGTH = 16
SLANTED_NAMES = 9
"""More names than these stand upright."""
CURVE_WIDTH = 5
"""Width of that curve; an output has 1."""
PANELS_ACROSS = 3
SHOWN = {"refine": "outputs", "align": "features"}


@dataclass(frozen=True)
class _Panel:
    """The priors of one place of one variant."""

    title: str
    place: str
    neutral: float
    levels: dict[int, list[np.ndarray]]
    """For each level the values of each seed."""


def priors_png(study: Study) -> bytes | None:
    """Draw the priors of every variant under the first setting; None where no trial has any."""
    panels = [panel for place in SHOWN for variant in study.variants for panel in _panels(study, variant, place)]
    if not panels:
        return None
    across = min(PANELS_ACROSS, len(panels))
    down = -(-len(panels) // across)
    figure = new_figure(max(0.4 + 4.6 * across, 6.4), 0.6 + 3.3 * down, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    grid = figure.subplots(down, across, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw(axes, panel, study.classes)
    for axes in list(grid.flat)[len(panels) :]:
        axes.remove()
    levels = sorted({level for panel in panels for level in panel.levels})
    handles = [Line2D([], [], color=colour(k), marker="o", label=f"level {k}{' (finest)' if k == 0 else ''}") for k in levels]
    handles.append(Line2D([], [], color=INK, linestyle="--", linewidth=1, label="changes nothing"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, labelcolor=INK)
    return png_bytes(figure)


def _panels(study: Study, variant: str, place: str) -> list[_Panel]:
    """Return the panel of a variant's priors in a place, if there are any."""
    priors = [prior for trial in trials_of(study, study.settings[0], variant) for prior in trial.priors if prior.place == place]
    if not priors:
        return []
    levels = {level: [p.values for p in priors if p.level == level] for level in sorted({p.level for p in priors})}
    operator = priors[0].operator
    return [_Panel(f"{VARIANTS[variant].title}: {SHOWN[place]}, {operator}", place, NEUTRAL[operator], levels)]


def _draw(axes: Axes, panel: _Panel, classes: Sequence[str]) -> None:
    plain_axes(axes, panel.title, "")
    axes.axhline(panel.neutral, color=INK, linewidth=1, linestyle="--")
    axes.ticklabel_format(axis="y", useOffset=False)
    if panel.place == "align":
        _features(axes, panel.levels)
    else:
        _outputs(axes, panel.levels, classes)


def _features(axes: Axes, levels: dict[int, list[np.ndarray]]) -> None:
    for level, seeds in levels.items():
        values = np.sort(np.stack(seeds), axis=1)
        _curve(axes, np.linspace(0, 100, values.shape[1]), values, level)
    axes.set_xlabel("channels in ascending order, %", color=INK)


def _outputs(axes: Axes, levels: dict[int, list[np.ndarray]], classes: Sequence[str]) -> None:
    named = len(classes) <= NAMED_CLASSES
    names = [*OUTPUTS, *(_short(name) for name in classes if named)]
    for index, (level, seeds) in enumerate(levels.items()):
        values = np.stack(seeds).mean(axis=1)
        places = np.arange(len(names)) + 0.5 * ((index + 0.5) / len(levels) - 0.5)
        _dots(axes, places, values[:, : len(names)], level)
        if not named:
            sorted_classes = np.sort(values[:, len(OUTPUTS) :], axis=1)
            _curve(axes, len(OUTPUTS) - 0.3 + np.linspace(0, CURVE_WIDTH - 0.4, len(classes)), sorted_classes, level)
    if not named:
        names.append(f"{len(classes)} classes, ascending")
    _name_outputs(axes, names, CURVE_WIDTH if not named else 1)


def _name_outputs(axes: Axes, names: Sequence[str], last_width: float) -> None:
    """Name the places along x, of which the last is so wide."""
    last = len(names) - 1
    upright = len(names) > SLANTED_NAMES
    style = {"rotation": 90} if upright else {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks([*range(last), last + (last_width - 1) / 2], names, **style)
    for label in axes.get_xticklabels():
        label.set_parse_math(False)
    if last_width > 1:
        axes.get_xticklabels()[-1].set(rotation=0, ha="center", rotation_mode="default")
    axes.set_xlim(-0.6, last + last_width - 0.4)
    axes.axvline(len(OUTPUTS) - 0.5, color=GRID, linewidth=1.6)


def _dots(axes: Axes, places: np.ndarray, values: np.ndarray, level: int) -> None:
    """Draw the mean of (S, F) values, and each seed faintly."""
    if len(values) > 1:
        axes.plot(np.tile(places, len(values)), values.ravel(), "o", color=colour(level), alpha=0.3, markersize=3, markeredgewidth=0)
    axes.plot(places, values.mean(axis=0), "o", color=colour(level), markersize=5)


def _curve(axes: Axes, places: np.ndarray, values: np.ndarray, level: int) -> None:
    """Draw the mean of (S, C) values, sorted, and each seed faintly."""
    for seed in values if len(values) > 1 else ():
        axes.plot(places, seed, color=colour(level), alpha=0.3, linewidth=0.8)
    axes.plot(places, values.mean(axis=0), color=colour(level), linewidth=1.8)


def _short(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"

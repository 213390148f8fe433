"""Plot of the learned priors (the paper's figure 9): priors on outputs by name, priors on features by their distribution.

Legend: S seeds, A anchors per cell, F = 5 + K outputs per anchor, K classes, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from yolor_ray.config.variants import VARIANTS
from yolor_ray.report.plots import GRID, INK, colour, new_figure, png_bytes, style_axes
from yolor_ray.study.ablation.summary import select_trials
from yolor_ray.study.results import Study

OUTPUTS = {"anchors": ("x", "y", "w", "h", "objectness"), "free": ("left", "top", "right", "bottom")}
"""Outputs before the classes by detection head; each distance of the head `free` may have several bins."""
NEUTRAL = {"add": 0.0, "concat": 0.0, "multiply": 1.0}
"""Value at which an operator changes nothing; a projection has none."""
MAX_NAMED_CLASSES = 12
"""A larger number of classes is drawn as one curve."""
MAX_NAME_LENGTH = 16
MAX_SLANTED_NAMES = 9
"""A larger number of names is written vertically."""
CURVE_WIDTH = 5
"""Width of the curve of classes on the x axis, where one output has width 1."""
COLUMNS = 3
"""Maximum number of panels in a row."""
ROLE_TITLES = {"refine": "outputs", "align": "features"}


@dataclass(frozen=True)
class _Panel:
    """The priors of one role in one variant."""

    title: str
    role: str
    neutral: float | None
    levels: dict[int, list[np.ndarray]]
    """For each level the values of each seed."""


def priors_png(study: Study) -> bytes | None:
    """Draw the priors of every variant under the first setting; None where no trial has priors."""
    panels = [panel for role in ROLE_TITLES for variant in study.variants for panel in _panels(study, variant, role)]
    if not panels:
        return None
    columns = min(COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    figure = new_figure(max(0.4 + 4.6 * columns, 6.4), 0.6 + 3.3 * lines, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw_panel(axes, panel, study.classes)
    for axes in list(grid.flat)[len(panels) :]:
        axes.remove()
    levels = sorted({level for panel in panels for level in panel.levels})
    handles = [Line2D([], [], color=colour(k), marker="o", label=f"level {k}{' (finest)' if k == 0 else ''}") for k in levels]
    handles.append(Line2D([], [], color=INK, linestyle="--", linewidth=1, label="changes nothing"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, labelcolor=INK)
    return png_bytes(figure)


def _panels(study: Study, variant: str, role: str) -> list[_Panel]:
    """Return a panel for each operator of a variant's priors in a role, or no panel without priors."""
    priors = [prior for trial in select_trials(study, study.settings[0], variant) for prior in trial.priors if prior.role == role]
    panels = []
    for operator in dict.fromkeys(prior.operator for prior in priors):
        levels: dict[int, list[np.ndarray]] = {}
        for prior in sorted((p for p in priors if p.operator == operator), key=lambda p: p.level):
            levels.setdefault(prior.level, []).append(prior.values)
        panels.append(_Panel(f"{VARIANTS[variant].title}: {ROLE_TITLES[role]}, {operator}", role, NEUTRAL.get(operator), levels))
    return panels


def _draw_panel(axes: Axes, panel: _Panel, classes: Sequence[str]) -> None:
    style_axes(axes, panel.title, "")
    if panel.neutral is not None:
        axes.axhline(panel.neutral, color=INK, linewidth=1, linestyle="--")
    axes.ticklabel_format(axis="y", useOffset=False)
    if panel.role == "align":
        _draw_features(axes, panel.levels)
    else:
        _draw_outputs(axes, panel.levels, classes)


def _draw_features(axes: Axes, levels: dict[int, list[np.ndarray]]) -> None:
    for level, seeds in levels.items():
        values = np.sort(np.stack(seeds), axis=1)
        _draw_curve(axes, np.linspace(0, 100, values.shape[1]), values, level)
    axes.set_xlabel("channels in ascending order, %", color=INK)


def _draw_outputs(axes: Axes, levels: dict[int, list[np.ndarray]], classes: Sequence[str]) -> None:
    classes_named = len(classes) <= MAX_NAMED_CLASSES
    box_outputs = len(next(iter(levels.values()))[0][0]) - len(classes)
    outputs = OUTPUTS["anchors" if box_outputs == len(OUTPUTS["anchors"]) else "free"]
    names, count = [*outputs, *(_shorten(name) for name in classes if classes_named)], len(outputs)
    for index, (level, seeds) in enumerate(levels.items()):
        of_boxes, of_classes = np.split(np.stack(seeds).mean(axis=1), [box_outputs], axis=1)
        # Of the bins of a distance, the mean is drawn.
        values = np.concatenate((of_boxes.reshape(len(seeds), count, -1).mean(axis=2), of_classes), axis=1)
        x = np.arange(len(names)) + 0.5 * ((index + 0.5) / len(levels) - 0.5)
        _draw_dots(axes, x, values[:, : len(names)], level)
        if not classes_named:
            sorted_classes = np.sort(values[:, count:], axis=1)
            _draw_curve(axes, count - 0.3 + np.linspace(0, CURVE_WIDTH - 0.4, len(classes)), sorted_classes, level)
    if not classes_named:
        names.append(f"{len(classes)} classes, ascending")
    _label_outputs(axes, names, CURVE_WIDTH if not classes_named else 1)
    axes.axvline(count - 0.5, color=GRID, linewidth=1.6)


def _label_outputs(axes: Axes, names: Sequence[str], last_width: float) -> None:
    """Label the x axis with names; the last name spans `last_width` units."""
    last = len(names) - 1
    vertical = len(names) > MAX_SLANTED_NAMES
    style = {"rotation": 90} if vertical else {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks([*range(last), last + (last_width - 1) / 2], names, **style)
    for label in axes.get_xticklabels():
        label.set_parse_math(False)
    if last_width > 1:
        axes.get_xticklabels()[-1].set(rotation=0, ha="center", rotation_mode="default")
    axes.set_xlim(-0.6, last + last_width - 0.4)


def _draw_dots(axes: Axes, x: np.ndarray, values: np.ndarray, level: int) -> None:
    """Draw the mean of (S, F) values, and each seed faintly."""
    if len(values) > 1:
        axes.plot(np.tile(x, len(values)), values.ravel(), "o", color=colour(level), alpha=0.3, markersize=3, markeredgewidth=0)
    axes.plot(x, values.mean(axis=0), "o", color=colour(level), markersize=5)


def _draw_curve(axes: Axes, x: np.ndarray, values: np.ndarray, level: int) -> None:
    """Draw the mean of (S, C) sorted values, and each seed faintly."""
    for seed in values if len(values) > 1 else ():
        axes.plot(x, seed, color=colour(level), alpha=0.3, linewidth=0.8)
    axes.plot(x, values.mean(axis=0), color=colour(level), linewidth=1.8)


def _shorten(name: str) -> str:
    return name if len(name) <= MAX_NAME_LENGTH else name[: MAX_NAME_LENGTH - 1] + "…"

"""Write the report of a hyper-parameter search as Markdown that also reads well as plain text."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from yolor_ray.config.dotted import format_value
from yolor_ray.config.search_space import Choice, Range
from yolor_ray.report.markdown import UNKNOWN, code, escape, points, table
from yolor_ray.study.search.results import SearchTrialResult, best, measured, rank_correlations

SHOWN = 20
"""Trials in the table; trials.csv has all."""
PLACES = 2
"""Decimals of points."""

READING = """## How to read this

AP is COCO's, averaged over IoU .50 to .95, on the validation images: for a finished trial that of its best weights, for a stopped one \
the last that it measured, after fewer epochs and before its learning rate came down, which is no match for a finished one. Every trial \
was trained once: differences of the size that another seed makes are noise, and the more trials there are, the more of the best one's \
lead is luck, because the images that chose it also measure it. To know what the settings are worth, train the new preset and the old one \
with several seeds each (`--run.seed`), and measure both on images that no trial has seen. trials.csv holds every trial and the URL of \
its run folder; report.json has all of this for machines."""
PICTURE = """## Picture

![parameters.png](parameters.png)

AP over each setting that was varied: dots are finished trials, rings stopped ones, the star is the best. Rings far below the dots \
stand on the lower edge."""
RANKS = """+1 where more is always better, −1 where less is. For orientation only: the search chose the trials and stopped the bad ones, \
settings act together, and where the best value lies in the middle of the range it may be 0."""

Space = Mapping[str, Choice | Range]


def report(tried: Sequence[SearchTrialResult], space: Space, start: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Return the report; see `search_files`."""
    found = best(tried)
    sections = [
        "# Search for a recipe",
        _verdict(tried, found, start),
        *([_run_it(summary), _settings(found, space, start)] if found else []),
        _table(tried, space),
        PICTURE,
        _ranks(tried, space),
        _failures(tried),
        "## What was done\n\n" + table(("what", "value"), [[escape(key), escape(value)] for key, value in summary.items()], words=2),
        READING,
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _verdict(tried: Sequence[SearchTrialResult], found: SearchTrialResult | None, start: Mapping[str, Any]) -> str:
    count = {state: sum(trial.state == state for trial in tried) for state in ("finished", "stopped", "failed")}
    trials = "1 trial" if len(tried) == 1 else f"{len(tried)} trials"
    all_of_them = f"{trials}: {count['finished']} finished, {count['stopped']} were stopped early, {count['failed']} failed."
    if found is None:
        return f"No trial was measured, so there is no best one. {all_of_them}"
    where = f"The run of the best: {code(found.run)}"
    if found.state == "stopped":
        reached = f"the best of the stopped ones reached **{_points(found)}** points of AP after {found.epochs} epochs"
        return f"No trial was trained to its end and measured; {reached}. {all_of_them} {where}"
    return f"The best trial reached **{_points(found)}** points of AP. {_gain(tried, found, start)} {all_of_them} {where}"


def _gain(tried: Sequence[SearchTrialResult], found: SearchTrialResult, start: Mapping[str, Any]) -> str:
    """Say what the start values themselves reached, if a finished trial had them."""
    own = next((trial for _, trial in measured(tried, "finished") if trial.values == start), None)
    if own is None:
        return "The start values were not trained to their end, so there is no gain to tell."
    if own is found:
        return "Those are the start values: nothing better was found."
    return f"The start values reached {_points(own)}: {points((found.AP or 0) - (own.AP or 0), PLACES)} less, with one seed each."


def _points(trial: SearchTrialResult) -> str:
    return UNKNOWN if trial.AP is None else points(trial.AP, PLACES)


def _run_it(summary: Mapping[str, Any]) -> str:
    return (
        f"## Train with the best settings\n\n```\npython jobs/train.py --preset-file {shlex.quote(str(summary['preset']))}\n```\n\n"
        "Any flag of `jobs/train.py` may follow and overrides the file."
    )


def _settings(found: SearchTrialResult, space: Space, start: Mapping[str, Any]) -> str:
    rows = [[code(name), _searched(dimension), _typed(start[name]), _typed(found.values[name])] for name, dimension in space.items()]
    return f"## Best settings\n\n{table(('setting', 'searched', 'start', 'best'), rows, words=2)}"


def _searched(dimension: Choice | Range) -> str:
    if isinstance(dimension, Choice):
        return ", ".join(map(_typed, dimension.values)) if len(dimension.values) > 1 else "fixed"
    return f"{_typed(dimension.low)} to {_typed(dimension.high)}{', log' if dimension.log else ''}"


def _table(tried: Sequence[SearchTrialResult], space: Space) -> str:
    stopped = sorted(measured(tried, "stopped"), key=lambda pair: -pair[1].epochs)
    ranked = [trial for _, trial in (*measured(tried, "finished"), *stopped)]
    if not ranked:
        return ""
    names = [name for name, dimension in space.items() if _searched(dimension) != "fixed"]
    rows = [
        [
            t.state,
            _points(t),
            str(t.epochs),
            f"{t.minutes:.1f}",
            *(_typed(t.values[name]) for name in names),
            code(t.run.rpartition("/")[2]),
        ]
        for t in ranked[:SHOWN]
    ]
    shown = f"{len(rows)} of {len(tried)}; finished ones first, AP in points."
    return f"## Best trials\n\n{shown}\n\n{table(('state', 'AP', 'epochs', 'minutes', *_short(names), 'run'), rows)}"


def _short(names: Sequence[str]) -> list[str]:
    """Return the last words of the names where those are different: the table is wide enough."""
    last = [name.rpartition(".")[2] for name in names]
    return [word if last.count(word) == 1 else name for word, name in zip(last, names, strict=True)]


def _ranks(tried: Sequence[SearchTrialResult], space: Space) -> str:
    rows = [[code(name), f"{value:+.2f}".replace("-", "−")] for name, value in rank_correlations(tried, space).items()]
    if not rows:
        return ""
    number = len(measured(tried, "finished"))
    what = f"Spearman's rank correlation of each number with AP over the {number} finished trials: {RANKS}"
    return f"## What goes with AP\n\n{what}\n\n{table(('setting', 'ρ'), rows)}"


def _failures(tried: Sequence[SearchTrialResult]) -> str:
    rows = [[escape(trial.reason), code(trial.run)] for trial in tried if trial.state == "failed"]
    return f"## Failures\n\n{table(('reason', 'run'), rows, words=2)}" if rows else ""


def _typed(value: Any) -> str:
    """Return a value as it is typed, numbers with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else escape(format_value(value))

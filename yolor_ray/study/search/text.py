"""Markdown report of a hyper-parameter search, which also reads well as plain text."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from yolor_ray.config.dotted import format_value
from yolor_ray.config.search_space import Choice, Range
from yolor_ray.report.markdown import UNKNOWN, code, escape, percent_points, table
from yolor_ray.study.search.results import SearchTrialResult, best_trial, rank_correlations, ranked_trials
from yolor_ray.study.wording import setup_section

MAX_ROWS = 20
"""Trials in the table; trials.csv has all."""
DECIMALS = 2
"""Decimals of points."""

READING = """## How to read this

AP is COCO's, averaged over IoU .50 to .95, on the validation images. The AP of a finished trial is that of its best weights. The AP of a \
stopped trial is its last measurement, after fewer epochs and before its learning rate came down, and cannot be compared with that of a \
finished trial. Every trial was trained once: differences as large as those between seeds are noise. The more trials a search has, the \
more of the best trial's lead is luck, because the images that selected the trial also measure it. To measure the gain of the settings, \
train the new and the old preset with several seeds each (`--run.seed`), and evaluate both on images that no trial has seen. trials.csv \
lists every trial with the URL of its run folder. report.json has the content of this report."""
PICTURE = """## Picture

![parameters.png](parameters.png)

AP over each varied setting: dots are finished trials, rings are stopped trials, the star is the best trial. Rings far below the dots are \
drawn on the lower edge."""
RANKS = """+1 means that larger values always have higher AP, −1 that smaller values always have. For orientation only: the search chose \
the trials and stopped the weak ones, settings interact, and the correlation may be 0 where the best value is in the middle of the range."""

Space = Mapping[str, Choice | Range]


def search_report(trials: Sequence[SearchTrialResult], space: Space, start: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Return the report as Markdown; see `search_files`."""
    best = best_trial(trials)
    sections = [
        "# Hyper-parameter search",
        _verdict(trials, best, start),
        *([_train_command(summary), _settings(best, space, start)] if best else []),
        _trials(trials, space),
        PICTURE,
        _ranks(trials, space),
        _failures(trials),
        setup_section(summary),
        READING,
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _verdict(trials: Sequence[SearchTrialResult], best: SearchTrialResult | None, start: Mapping[str, Any]) -> str:
    finished, stopped, failed = (sum(trial.state == state for trial in trials) for state in ("finished", "stopped", "failed"))
    count = "1 trial" if len(trials) == 1 else f"{len(trials)} trials"
    counts = f"{count}: {finished} finished, {stopped} stopped early, {failed} failed."
    if best is None:
        return f"No trial was measured, so there is no best trial. {counts}"
    run = f"Run of the best trial: {code(best.run)}"
    if best.state == "stopped":
        reached = f"the best stopped trial reached **{_points(best)}** points of AP after {best.epochs} epochs"
        return f"No finished trial was measured; {reached}. {counts} {run}"
    return f"The best trial reached **{_points(best)}** points of AP. {_gain(trials, best, start)} {counts} {run}"


def _gain(trials: Sequence[SearchTrialResult], best: SearchTrialResult, start: Mapping[str, Any]) -> str:
    """Return a comparison with the start values, if a finished trial had these values."""
    start_trial = next((trial for _, trial in ranked_trials(trials, "finished") if trial.values == start), None)
    if start_trial is None:
        return "No finished trial had the start values, so the gain is not known."
    if start_trial is best:
        return "The best settings are the start values: the search found no better ones."
    gain = percent_points((best.AP or 0) - (start_trial.AP or 0), DECIMALS)
    return f"The start values reached {_points(start_trial)}: {gain} less, with one seed each."


def _points(trial: SearchTrialResult) -> str:
    return UNKNOWN if trial.AP is None else percent_points(trial.AP, DECIMALS)


def _train_command(summary: Mapping[str, Any]) -> str:
    return (
        f"## Train with the best settings\n\n```\npython jobs/train.py --preset-file {shlex.quote(str(summary['preset']))}\n```\n\n"
        "Further flags of `jobs/train.py` override the file."
    )


def _settings(best: SearchTrialResult, space: Space, start: Mapping[str, Any]) -> str:
    rows = [
        [code(name), _format_dimension(dimension), _format(start[name]), _format(best.values[name])] for name, dimension in space.items()
    ]
    return f"## Best settings\n\n{table(('setting', 'searched', 'start', 'best'), rows, text_columns=2)}"


def _format_dimension(dimension: Choice | Range) -> str:
    if isinstance(dimension, Choice):
        return ", ".join(map(_format, dimension.values)) if len(dimension.values) > 1 else "fixed"
    return f"{_format(dimension.low)} to {_format(dimension.high)}{', log' if dimension.log else ''}"


def _trials(trials: Sequence[SearchTrialResult], space: Space) -> str:
    stopped = sorted(ranked_trials(trials, "stopped"), key=lambda pair: -pair[1].epochs)
    ranked = [trial for _, trial in (*ranked_trials(trials, "finished"), *stopped)]
    if not ranked:
        return ""
    names = [name for name, dimension in space.items() if _format_dimension(dimension) != "fixed"]
    rows = [
        [
            trial.state,
            _points(trial),
            str(trial.epochs),
            f"{trial.minutes:.1f}",
            *(_format(trial.values[name]) for name in names),
            code(trial.run.rpartition("/")[2]),
        ]
        for trial in ranked[:MAX_ROWS]
    ]
    caption = f"{len(rows)} of {len(trials)} trials, finished trials first; AP in points."
    return f"## Best trials\n\n{caption}\n\n{table(('state', 'AP', 'epochs', 'minutes', *_short_names(names), 'run'), rows)}"


def _short_names(names: Sequence[str]) -> list[str]:
    """Return the last part of each dotted name where that part is unique, to keep the table narrow."""
    last_parts = [name.rpartition(".")[2] for name in names]
    return [part if last_parts.count(part) == 1 else name for part, name in zip(last_parts, names, strict=True)]


def _ranks(trials: Sequence[SearchTrialResult], space: Space) -> str:
    rows = [[code(name), f"{value:+.2f}".replace("-", "−")] for name, value in rank_correlations(trials, space).items()]
    if not rows:
        return ""
    finished = len(ranked_trials(trials, "finished"))
    caption = f"Spearman's rank correlation of each numeric setting with AP over the {finished} finished trials: {RANKS}"
    return f"## Correlation with AP\n\n{caption}\n\n{table(('setting', 'ρ'), rows)}"


def _failures(trials: Sequence[SearchTrialResult]) -> str:
    rows = [[escape(trial.reason), code(trial.run)] for trial in trials if trial.state == "failed"]
    return f"## Failures\n\n{table(('reason', 'run'), rows, text_columns=2)}" if rows else ""


def _format(value: Any) -> str:
    """Return a value as command-line text, floats with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else escape(format_value(value))

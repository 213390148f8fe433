"""Files of a hyper-parameter search: the report as Markdown and JSON, the list of trials, the picture, and the best preset."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from yolor_ray.config.search_space import Choice, Range
from yolor_ray.report.csv_json import csv_text, json_text
from yolor_ray.study.search.plots import parameters_png
from yolor_ray.study.search.results import SearchTrialResult, best_trial, rank_correlations
from yolor_ray.study.search.text import search_report
from yolor_ray.study.workspace import REPORT_FILE

PRESET_FILE = "preset.json"
TRIAL_COLUMNS = ("state", "AP", "epochs", "minutes", "run", "reason")


def search_files(
    trials: Sequence[SearchTrialResult],
    space: Mapping[str, Choice | Range],
    start: Mapping[str, Any],
    preset: bytes,
    summary: Mapping[str, Any],
) -> dict[str, bytes]:
    """Return report.md, report.json, trials.csv, parameters.png and preset.json.

    Args:
        trials: all trials, in the order in which they started.
        space: search space by dotted name.
        start: values of these names at the start of the search.
        preset: settings of the best trial as the config.json of a run.
        summary: data, schedule, command and commit, in the order of the report; `preset` is the URL of preset.json.

    """
    return {
        REPORT_FILE: search_report(trials, space, start, summary).encode(),
        "report.json": _json(trials, space, start, summary).encode(),
        "trials.csv": _csv(trials, list(space)).encode(),
        "parameters.png": parameters_png(trials, space),
        PRESET_FILE: preset,
    }


def _json(
    trials: Sequence[SearchTrialResult], space: Mapping[str, Choice | Range], start: Mapping[str, Any], summary: Mapping[str, Any]
) -> str:
    best = best_trial(trials)
    content = {
        "summary": summary,
        "best": asdict(best) if best else None,
        "start": start,
        "space": {name: asdict(dimension) for name, dimension in space.items()},
        "rank_correlation": rank_correlations(trials, space),
        "trials": [asdict(trial) for trial in trials],
    }
    return json_text(content)


def _csv(trials: Sequence[SearchTrialResult], names: Sequence[str]) -> str:
    rows = [asdict(trial) | {name: trial.values[name] for name in names} for trial in trials]
    columns = (*TRIAL_COLUMNS, *names)
    return csv_text(columns, [{column: row[column] for column in columns} for row in rows])

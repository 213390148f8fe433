"""Gather what a hyper-parameter search leaves behind: a report to read, tables for machines, a picture, and the best as a preset."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from yolor_ray.config.search_space import Choice, Range
from yolor_ray.report.csv_json import csv_text, json_text
from yolor_ray.study.search.plots import parameters_png
from yolor_ray.study.search.results import SearchTrialResult, best, rank_correlations
from yolor_ray.study.search.text import report

PRESET_FILE, REPORT_FILE = "preset.json", "report.md"
COLUMNS = ("state", "AP", "epochs", "minutes", "run", "reason")
__all__ = ["PRESET_FILE", "REPORT_FILE", "SearchTrialResult", "best", "search_files"]


def search_files(
    tried: Sequence[SearchTrialResult],
    space: Mapping[str, Choice | Range],
    start: Mapping[str, Any],
    preset: bytes,
    summary: Mapping[str, Any],
) -> dict[str, bytes]:
    """Return report.md, report.json, trials.csv, parameters.png and preset.json.

    Args:
        tried: all trials, in the order in which they began.
        space: what was searched, by dotted name.
        start: the values of these names that the search began from.
        preset: the settings of the best trial as the config.json of a run holds them.
        summary: what was done on what with which command, in the order in which it is told; `preset` is the URL of preset.json.
    """
    return {
        REPORT_FILE: report(tried, space, start, summary).encode(),
        "report.json": _json(tried, space, start, summary).encode(),
        "trials.csv": _csv(tried, list(space)).encode(),
        "parameters.png": parameters_png(tried, space),
        PRESET_FILE: preset,
    }


def _json(
    tried: Sequence[SearchTrialResult], space: Mapping[str, Choice | Range], start: Mapping[str, Any], summary: Mapping[str, Any]
) -> str:
    found = best(tried)
    content = {
        "summary": summary,
        "best": asdict(found) if found else None,
        "start": start,
        "space": {name: asdict(dimension) for name, dimension in space.items()},
        "rank_correlation": rank_correlations(tried, space),
        "trials": [asdict(trial) for trial in tried],
    }
    return json_text(content)


def _csv(tried: Sequence[SearchTrialResult], names: Sequence[str]) -> str:
    rows = [asdict(trial) | {name: trial.values[name] for name in names} for trial in tried]
    columns = (*COLUMNS, *names)
    return csv_text(columns, [{column: row[column] for column in columns} for row in rows])

"""CSV and JSON files of an ablation: one CSV row per estimate or trial, and one JSON object with the whole study.

Accuracies are 0 to 1.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from yolor_ray.config.variants import VARIANTS
from yolor_ray.report.csv_json import csv_text, json_text
from yolor_ray.study.ablation.summary import Summary, SummaryRow, select_trials
from yolor_ray.study.paper_results import ROWS, SOURCE
from yolor_ray.study.results import METRICS, Cost, Study, TrialResult

ESTIMATE_COLUMNS = (
    "setting",
    "variant",
    "title",
    "metric",
    "seeds",
    "mean",
    "low",
    "high",
    "paired_seeds",
    "difference",
    "difference_low",
    "difference_high",
    "beyond_noise",
)
COST_COLUMNS = tuple(Cost.__dataclass_fields__)
TRIAL_COLUMNS = ("setting", "variant", "title", "seed", "state", *METRICS, "minutes", "run", "reason")


def report_csv(summary: Summary) -> str:
    """Return a row for each setting, variant and metric; costs appear in the rows of the setting that was measured."""
    rows = [_estimate(summary, row, metric) for row in summary.rows for metric in METRICS]
    return csv_text((*ESTIMATE_COLUMNS, *COST_COLUMNS), rows)


def trials_csv(study: Study) -> str:
    """Return a row for each trial, finished trials first, then failed trials."""
    trials = [trial for setting in study.settings for variant in study.variants for trial in select_trials(study, setting, variant)]
    rows: list[dict[str, Any]] = [{**_trial(trial), "state": "finished", **trial.metrics} for trial in trials]
    rows += [{**asdict(failure), "state": "failed"} for failure in study.failures]
    return csv_text(TRIAL_COLUMNS, [{**row, "title": VARIANTS[row["variant"]].title} for row in rows])


def report_json(summary: Summary, verdict: Sequence[str]) -> str:
    """Return the content of the report, and every trial with its priors."""
    study = summary.study
    content = {
        "verdict": list(verdict),
        "summary": study.summary,
        "metrics": METRICS,
        "settings": study.settings,
        "classes": study.classes,
        "variants": {name: asdict(VARIANTS[name]) for name in study.variants},
        "rows": [_row(summary, row) for row in summary.rows],
        "costs": {name: asdict(cost) for name, cost in study.costs.items()},
        "trials": [_trial(t) | {"metrics": t.metrics, "priors": _priors(t)} for t in study.trials],
        "failures": [asdict(failure) for failure in study.failures],
        "paper": {"source": SOURCE, "rows": {name: asdict(row) for name, row in ROWS.items()}},
    }
    return json_text(content)


def _estimate(summary: Summary, row: SummaryRow, metric: str) -> dict[str, Any]:
    study = summary.study
    cells = {
        "setting": row.setting,
        "variant": row.variant,
        "title": VARIANTS[row.variant].title,
        "metric": metric,
        "seeds": len(row.seeds),
        **asdict(row.metrics[metric]),
        "paired_seeds": len(row.paired),
    }
    if row.paired:
        difference = row.differences[metric]
        cells |= {"difference": difference.mean, "difference_low": difference.low, "difference_high": difference.high}
        cells["beyond_noise"] = str(row.beyond_noise(metric)).lower()
    cost = study.costs.get(row.variant) if row.setting == study.settings[0] else None
    return cells | (asdict(cost) if cost else {})


def _row(summary: Summary, row: SummaryRow) -> dict[str, Any]:
    differences = {name: asdict(estimate) | {"beyond_noise": row.beyond_noise(name)} for name, estimate in row.differences.items()}
    return {
        "setting": row.setting,
        "variant": row.variant,
        "baseline": row.variant == summary.study.variants[0],
        "seeds": row.seeds,
        "metrics": {name: asdict(estimate) for name, estimate in row.metrics.items()},
        "paired_seeds": row.paired,
        "differences": differences,
        "seed_differences_AP": row.seed_differences,
    }


def _trial(trial: TrialResult) -> dict[str, Any]:
    return {name: getattr(trial, name) for name in ("variant", "setting", "seed", "run", "minutes")}


def _priors(trial: TrialResult) -> list[dict[str, Any]]:
    return [{"place": prior.role, "level": prior.level, "operator": prior.operator, "values": prior.values} for prior in trial.priors]

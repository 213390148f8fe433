"""Write an ablation for machines: CSV with a row per number or trial, and JSON with everything.

Accuracies are 0 to 1.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from yolor_ray.config.variants import VARIANTS
from yolor_ray.report.csv_json import csv_text, json_text
from yolor_ray.study.ablation.summary import Row, Summary, trials_of
from yolor_ray.study.paper_results import ROWS, SOURCE
from yolor_ray.study.results import METRICS, Cost, Study, TrialResult

ESTIMATES = (
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
COSTS = tuple(Cost.__dataclass_fields__)
TRIALS = ("setting", "variant", "title", "seed", "state", *METRICS, "minutes", "run", "reason")


def report_csv(summary: Summary) -> str:
    """Return a row for each setting, variant and metric; costs stand with the setting that they were measured under."""
    return csv_text((*ESTIMATES, *COSTS), [_estimate(summary, row, metric) for row in summary.rows for metric in METRICS])


def trials_csv(study: Study) -> str:
    """Return a row for each training, those that failed after those that did not."""
    trials = [trial for setting in study.settings for variant in study.variants for trial in trials_of(study, setting, variant)]
    rows: list[dict[str, Any]] = [{**_trial(trial), "state": "finished", **trial.metrics} for trial in trials]
    rows += [{**asdict(failure), "state": "failed"} for failure in study.failures]
    return csv_text(TRIALS, [{**row, "title": VARIANTS[row["variant"]].title} for row in rows])


def report_json(summary: Summary, verdict: Sequence[str]) -> str:
    """Return everything that the report tells, and every trial with its priors."""
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
        "trials": [_trial(t) | {"metrics": t.metrics, "priors": [asdict(prior) for prior in t.priors]} for t in study.trials],
        "failures": [asdict(failure) for failure in study.failures],
        "paper": {"source": SOURCE, "rows": {name: asdict(row) for name, row in ROWS.items()}},
    }
    return json_text(content)


def _estimate(summary: Summary, row: Row, metric: str) -> dict[str, Any]:
    study, found = summary.study, row.metrics[metric]
    filled = {
        "setting": row.setting,
        "variant": row.variant,
        "title": VARIANTS[row.variant].title,
        "metric": metric,
        "seeds": len(row.seeds),
        **asdict(found),
        "paired_seeds": len(row.paired),
    }
    if row.paired:
        moved = row.differences[metric]
        filled |= {"difference": moved.mean, "difference_low": moved.low, "difference_high": moved.high}
        filled["beyond_noise"] = str(row.beyond_noise(metric)).lower()
    cost = study.costs.get(row.variant) if row.setting == study.settings[0] else None
    return filled | (asdict(cost) if cost else {})


def _row(summary: Summary, row: Row) -> dict[str, Any]:
    return {
        "setting": row.setting,
        "variant": row.variant,
        "baseline": row.variant == summary.study.variants[0],
        "seeds": row.seeds,
        "metrics": {name: asdict(found) for name, found in row.metrics.items()},
        "paired_seeds": row.paired,
        "differences": {name: asdict(found) | {"beyond_noise": row.beyond_noise(name)} for name, found in row.differences.items()},
        "seed_differences_AP": row.seed_differences,
    }


def _trial(trial: TrialResult) -> dict[str, Any]:
    return {name: getattr(trial, name) for name in ("variant", "setting", "seed", "run", "minutes")}

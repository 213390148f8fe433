"""Files of a comparison of tasks: the report as Markdown, CSV and JSON, and the list of trials."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from yolor_ray.evaluate.metrics import MAIN_METRICS
from yolor_ray.report.csv_json import csv_text, json_text
from yolor_ray.report.markdown import code, escape, table
from yolor_ray.study.estimates import Estimate
from yolor_ray.study.paper_results import JOINT_TASK_ROWS, SOURCE
from yolor_ray.study.results import Failure
from yolor_ray.study.tasks.results import (
    MEAN,
    Comparison,
    StudyArm,
    TasksStudy,
    TaskTrialResult,
    best_arm,
    estimate_metric,
    estimate_task_mean,
    metrics_of_task,
    trials_of_arm,
)
from yolor_ray.study.tasks.tables import (
    arm_title,
    costs_section,
    differences_section,
    make_comparisons,
    metrics_section,
    paper_section,
)
from yolor_ray.study.tasks.verdict import verdict
from yolor_ray.study.wording import setup_section
from yolor_ray.study.workspace import REPORT_FILE

READING = """## How to read this

An arm is a set of tasks that one network learns, with or without implicit knowledge. A mask, keypoints or an embedding belongs to a \
detected box, so the arm that learns such a task alone learns detection too. Labels of whole images are learned alone with no weight on \
boxes, objectness and classes, so that labels alone train the shared features. The arms of single tasks and the joint arm have no \
implicit knowledge; joint + implicit has that of network.implicit for each task. Networks with one seed start from the same weights of \
backbone, neck and detection and see the same images in the same order, and arms are compared seed by seed. Each network is measured \
once, after its last epoch. The intervals cover noise from seeds only, not from the choice of validation images, nor other datasets, \
networks or schedules. trials.csv lists every trial with the URL of its run folder, which has the weights, curves and settings. \
report.csv and report.json have the numbers of this report, unrounded."""
ESTIMATE_COLUMNS = ("form", "against", "task", "metric", "seeds", "mean", "low", "high", "beyond_noise")
"""Columns of report.csv: `form` is the arm, `against` the reference of a difference."""


def tasks_files(study: TasksStudy) -> dict[str, bytes]:
    """Return report.md, report.csv, report.json and trials.csv.

    Accuracies are 0 to 1 in CSV and JSON, and points in Markdown; an unknown number is null or empty.
    """
    return {
        REPORT_FILE: _report(study).encode(),
        "report.csv": csv_text(ESTIMATE_COLUMNS, list(_estimates(study))).encode(),
        "report.json": _json(study).encode(),
        "trials.csv": _trials_csv(study).encode(),
    }


def _report(study: TasksStudy) -> str:
    sections = [
        "# Tasks alone and jointly",
        *verdict(study),
        setup_section(study.summary),
        metrics_section(study),
        differences_section(study),
        costs_section(study),
        paper_section(),
        _failures(study),
        READING,
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _failures(study: TasksStudy) -> str:
    rows = [[arm_title(failure.variant), str(failure.seed), escape(failure.reason), code(failure.run)] for failure in study.failures]
    return f"## Failures\n\n{table(('arm', 'seed', 'reason', 'run'), rows, text_columns=4)}" if rows else ""


def _estimates(study: TasksStudy) -> Iterator[dict[str, Any]]:
    """Yield a row for each metric of each arm, with an empty `against`, then a row for each difference."""
    for arm in study.arms:
        seeds = len(trials_of_arm(study, arm.name))
        for task in arm.tasks:
            for metric in metrics_of_task(task):
                yield _row(arm.name, "", task, metric, seeds, estimate_metric(study, arm, metric))
        if arm in study.arms[-2:]:
            yield _row(arm.name, "", MEAN, "", seeds, estimate_task_mean(study, arm))
    for comparison in make_comparisons(study):
        for task, difference in comparison.differences.items():
            seeds = len(comparison.seeds[task])
            row = _row(comparison.arm, comparison.reference, task, MAIN_METRICS.get(task, ""), seeds, difference)
            yield row | {"beyond_noise": str(difference.beyond_noise).lower()}


def _row(arm: str, reference: str, task: str, metric: str, seeds: int, estimate: Estimate) -> dict[str, Any]:
    return {"form": arm, "against": reference, "task": task, "metric": metric, "seeds": seeds, **asdict(estimate)}


def _json(study: TasksStudy) -> str:
    content = {
        "verdict": verdict(study),
        "best": best_arm(study),
        "summary": study.summary,
        "tasks": study.tasks,
        "main_numbers": {task: MAIN_METRICS[task] for task in study.tasks},
        "forms": [_arm(study, arm) for arm in study.arms],
        "comparisons": [_comparison(comparison) for comparison in make_comparisons(study)],
        "trials": [_trial(trial) | {"metrics": trial.metrics} for trial in study.trials],
        "failures": [_failure(failure) for failure in study.failures],
        "paper": {"source": SOURCE, "rows": {name: asdict(row) for name, row in JOINT_TASK_ROWS.items()}},
    }
    return json_text(content)


def _arm(study: TasksStudy, arm: StudyArm) -> dict[str, Any]:
    metrics = {metric: asdict(estimate_metric(study, arm, metric)) for task in arm.tasks for metric in metrics_of_task(task)}
    seeds = [trial.seed for trial in trials_of_arm(study, arm.name)]
    return {**asdict(arm), "seeds": seeds, "metrics": metrics, "mean": asdict(estimate_task_mean(study, arm))}


def _comparison(comparison: Comparison) -> dict[str, Any]:
    differences = {
        task: asdict(difference) | {"seeds": comparison.seeds[task], "beyond_noise": difference.beyond_noise}
        for task, difference in comparison.differences.items()
    }
    return {"form": comparison.arm, "against": comparison.reference, "differences": differences}


def _trial(trial: TaskTrialResult) -> dict[str, Any]:
    columns = ("seed", "run", "parameters", "fused_parameters", "minutes")
    return {"form": trial.arm} | {name: getattr(trial, name) for name in columns}


def _failure(failure: Failure) -> dict[str, Any]:
    return {"form": failure.variant, "seed": failure.seed, "run": failure.run, "reason": failure.reason}


def _trials_csv(study: TasksStudy) -> str:
    """Return a row for each trial, finished trials first, then failed trials."""
    metrics = tuple(metric for task in study.tasks for metric in metrics_of_task(task))
    columns = ("form", "seed", "state", *metrics, "parameters", "fused_parameters", "minutes", "run", "reason")
    rows = [
        _trial(trial) | {"state": "finished"} | {metric: trial.metrics[metric] for metric in metrics if metric in trial.metrics}
        for arm in study.arms
        for trial in trials_of_arm(study, arm.name)
    ]
    return csv_text(columns, rows + [_failure(failure) | {"state": "failed"} for failure in study.failures])

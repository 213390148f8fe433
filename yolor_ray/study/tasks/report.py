"""Gather what a study of tasks leaves behind: a report to read, and tables for machines."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from yolor_ray.evaluate.metrics import FITNESS
from yolor_ray.report.csv_json import csv_text, json_text
from yolor_ray.report.markdown import code, escape, table
from yolor_ray.study.estimates import Estimate
from yolor_ray.study.paper_results import JOINT, SOURCE
from yolor_ray.study.tasks.results import MEAN, Comparison, StudyArm, TasksStudy, best, columns_of, overall, reached, trials_of_arm
from yolor_ray.study.tasks.tables import comparisons_of, costs, differences, numbers, paper, title
from yolor_ray.study.tasks.verdict import verdict
from yolor_ray.study.workspace import REPORT_FILE

READING = """## How to read this

A form says which tasks one network learns. A mask, keypoints or an embedding is that of a detected box, so whoever learns it alone \
learns detection along with it; labels of whole images are learned alone with no weight on boxes, objectness and classes, so that labels \
are all that teaches the shared features. Single tasks and the joint form have no implicit knowledge; joint + implicit has that of \
network.implicit for each task. Networks of one seed start from the same weights of backbone, neck and detection and see the same \
images in the same order, and forms are compared seed by seed. Each network is measured once, after its last epoch. The intervals cover \
chance by seeds only, not by the choice of validation images, nor other data sets, networks or schedules. Every trial with the URL of \
its run folder, where its weights, curves and settings are, is in trials.csv; report.csv and report.json hold what is written here, \
unrounded."""
ESTIMATES = ("form", "against", "task", "metric", "seeds", "mean", "low", "high", "beyond_noise")


def tasks_files(study: TasksStudy) -> dict[str, bytes]:
    """Return report.md, report.csv, report.json and trials.csv.

    Accuracies are 0 to 1 for machines and points for people; a number that is unknown is null or empty.
    """
    return {
        REPORT_FILE: _report(study).encode(),
        "report.csv": csv_text(ESTIMATES, list(_estimates(study))).encode(),
        "report.json": _json(study).encode(),
        "trials.csv": _trials(study).encode(),
    }


def _report(study: TasksStudy) -> str:
    sections = [
        "# Tasks alone and together",
        *verdict(study),
        "## What was done\n\n" + table(("what", "value"), [[escape(key), escape(value)] for key, value in study.summary.items()], words=2),
        numbers(study),
        differences(study),
        costs(study),
        paper(),
        _failures(study),
        READING,
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _failures(study: TasksStudy) -> str:
    rows = [[title(one.variant), str(one.seed), escape(one.reason), code(one.run)] for one in study.failures]
    return f"## Failures\n\n{table(('form', 'seed', 'reason', 'run'), rows, words=4)}" if rows else ""


def _estimates(study: TasksStudy) -> Iterator[dict[str, Any]]:
    """Yield a row for each number of each form, then one for each difference; `against` is empty for the former."""
    for form in study.forms:
        seeds = len(trials_of_arm(study, form.name))
        for task in form.tasks:
            for metric in columns_of(task):
                yield _row(form.name, "", task, metric, seeds, reached(study, form, metric))
        if form in study.forms[-2:]:
            yield _row(form.name, "", MEAN, "", seeds, overall(study, form))
    for one in comparisons_of(study):
        for task, found in one.differences.items():
            metric = FITNESS.get(task, "")
            yield _row(one.form, one.against, task, metric, len(one.seeds[task]), found) | {"beyond_noise": str(found.beyond_noise).lower()}


def _row(form: str, against: str, task: str, metric: str, seeds: int, found: Estimate) -> dict[str, Any]:
    return {"form": form, "against": against, "task": task, "metric": metric, "seeds": seeds, **asdict(found)}


def _json(study: TasksStudy) -> str:
    content = {
        "verdict": verdict(study),
        "best": best(study),
        "summary": study.summary,
        "tasks": study.tasks,
        "main_numbers": {task: FITNESS[task] for task in study.tasks},
        "forms": [_form(study, form) for form in study.forms],
        "comparisons": [_comparison(one) for one in comparisons_of(study)],
        "trials": [asdict(one) for one in study.trained],
        "failures": [_failure(one) for one in study.failures],
        "paper": {"source": SOURCE, "rows": {name: asdict(row) for name, row in JOINT.items()}},
    }
    return json_text(content)


def _form(study: TasksStudy, form: StudyArm) -> dict[str, Any]:
    metrics = {metric: asdict(reached(study, form, metric)) for task in form.tasks for metric in columns_of(task)}
    seeds = [one.seed for one in trials_of_arm(study, form.name)]
    return {**asdict(form), "seeds": seeds, "metrics": metrics, "mean": asdict(overall(study, form))}


def _comparison(comparison: Comparison) -> dict[str, Any]:
    found = {
        task: asdict(estimate) | {"seeds": comparison.seeds[task], "beyond_noise": estimate.beyond_noise}
        for task, estimate in comparison.differences.items()
    }
    return {"form": comparison.form, "against": comparison.against, "differences": found}


def _failure(failure: Any) -> dict[str, Any]:
    return {"form": failure.variant, "seed": failure.seed, "run": failure.run, "reason": failure.reason}


def _trials(study: TasksStudy) -> str:
    """Return a row for each training, those that failed after those that did not."""
    metrics = tuple(metric for task in study.tasks for metric in columns_of(task))
    columns = ("form", "seed", "state", *metrics, "parameters", "fused_parameters", "minutes", "run", "reason")
    costs = ("form", "seed", "parameters", "fused_parameters", "minutes", "run")
    rows = [
        {name: getattr(one, name) for name in costs} | {"state": "finished"} | {m: one.metrics[m] for m in metrics if m in one.metrics}
        for form in study.forms
        for one in trials_of_arm(study, form.name)
    ]
    return csv_text(columns, rows + [_failure(one) | {"state": "failed"} for one in study.failures])

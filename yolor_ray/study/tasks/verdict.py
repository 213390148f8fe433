"""Verdict of a comparison of tasks in plain English: tasks that joint learning or implicit knowledge changes beyond noise between seeds."""

import numpy as np

from yolor_ray.report.markdown import join_with_and
from yolor_ray.study.tasks.results import ALONE, IMPLICIT, JOINT, MEAN, Comparison, TasksStudy
from yolor_ray.study.tasks.tables import difference_decimals, main_title, make_comparisons
from yolor_ray.study.wording import describe_chance, format_difference

CHANGES = {
    (JOINT, ALONE): "Learning all tasks jointly instead of each alone, both without implicit knowledge,",
    (IMPLICIT, JOINT): "Adding implicit knowledge to the joint network",
    (IMPLICIT, ALONE): "Learning all tasks jointly with implicit knowledge instead of each alone without implicit knowledge",
}


def verdict(study: TasksStudy) -> list[str]:
    """Return paragraphs of Markdown: one for each comparison, then the paragraphs about the whole study."""
    comparisons = make_comparisons(study)
    decimals = difference_decimals(comparisons)
    paragraphs = [f"{CHANGES[c.arm, c.reference]} {_comparison_verdict(c, decimals)}" for c in comparisons]
    return [paragraph for paragraph in (*paragraphs, _chance(comparisons), _tasks_without_arm(study), _failures(study)) if paragraph]


def _comparison_verdict(comparison: Comparison, decimals: int) -> str:
    testable = comparison.testable_tasks
    measured = [task for task, difference in comparison.differences.items() if task != MEAN and np.isfinite(difference.mean)]
    if not measured:
        return "cannot be judged: no seed has finished and measured networks of both kinds."
    if not testable:
        changes = join_with_and([_change(comparison, task, decimals) for task in measured])
        return f"changes {changes}; with one seed nothing can be called larger than noise. Two or more seeds would show the noise."
    untestable = [main_title(task) for task in measured if task not in testable]
    missing = f" {join_with_and(untestable)} cannot be judged, with fewer than two seeds." if untestable else ""
    return _task_results(comparison, decimals) + _mean_result(comparison, decimals) + missing


def _task_results(comparison: Comparison, decimals: int) -> str:
    testable, differences = comparison.testable_tasks, comparison.differences
    beyond = [task for task in testable if differences[task].beyond_noise]
    if not beyond:
        intervals = f"all {len(testable)} intervals contain" if len(testable) > 1 else "the only interval contains"
        return f"changes no task by more than noise: {intervals} 0."
    raised = [task for task in beyond if differences[task].mean > 0]
    lowered = [task for task in beyond if task not in raised]
    clauses = [
        f"{verb} {join_with_and([_change(comparison, task, decimals) for task in tasks])}"
        for verb, tasks in (("raises", raised), ("lowers", lowered))
        if tasks
    ]
    remaining = len(testable) - len(beyond)
    rest = f" The other {remaining} of {len(testable)} differences are not." if remaining > 1 else " The other difference is not."
    return f"{join_with_and(clauses)} by more than noise.{rest if remaining else ''}"


def _change(comparison: Comparison, task: str, decimals: int) -> str:
    return f"**{main_title(task)}** ({format_difference(comparison.differences[task], decimals)})"


def _mean_result(comparison: Comparison, decimals: int) -> str:
    difference = comparison.differences[MEAN]
    if np.isnan(difference.low) or len(comparison.testable_tasks) < 2:
        return ""
    size = "larger" if difference.beyond_noise else "not larger"
    return f" The mean of the tasks changes by {format_difference(difference, decimals)}, {size} than noise."


def _chance(comparisons: list[Comparison]) -> str:
    count = sum(len(comparison.testable_tasks) for comparison in comparisons)
    return f"{describe_chance(count)} The intervals cover seeds only, not the choice of validation images." if count else ""


def _tasks_without_arm(study: TasksStudy) -> str:
    """Return a sentence about the task that has no arm of its own, if there is such a task."""
    arms = {arm.name for arm in study.arms}
    tasks = [task for task in study.tasks if task not in arms]
    if not tasks:
        return ""
    return f"{join_with_and(tasks).capitalize()} needs detected boxes, so with these tasks its network alone is the joint network."


def _failures(study: TasksStudy) -> str:
    failed, started = len(study.failures), len(study.failures) + len(study.trials)
    return f"{failed} of {started} trials failed: see Failures below." if failed else ""

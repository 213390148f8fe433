"""Say in plain English which tasks gain or lose by being learned together, and by implicit knowledge, beyond noise between seeds."""

import numpy as np

from yolor_ray.report.markdown import joined
from yolor_ray.study.tasks.results import ALONE, IMPLICIT, JOINT, MEAN, Comparison, TasksStudy
from yolor_ray.study.tasks.tables import comparisons_of, difference_places, main_title
from yolor_ray.study.wording import by_chance, difference_text

CHANGES = {
    (JOINT, ALONE): "To learn all tasks jointly instead of each alone, both without implicit knowledge,",
    (IMPLICIT, JOINT): "To give the joint network implicit knowledge",
    (IMPLICIT, ALONE): "To learn all tasks jointly with implicit knowledge instead of each alone without any",
}


def verdict(study: TasksStudy) -> list[str]:
    """Return paragraphs of Markdown: one for each comparison, then what holds for all of them."""
    compared = comparisons_of(study)
    places = difference_places(compared)
    said = [f"{CHANGES[one.form, one.against]} {_judgement(one, places)}" for one in compared]
    return [part for part in (*said, _chance(compared), _same(study), _failures(study)) if part]


def _judgement(comparison: Comparison, places: int) -> str:
    known = [task for task, found in comparison.differences.items() if task != MEAN and np.isfinite(found.mean)]
    if not known:
        return "cannot be judged: there is no seed with which networks of both kinds were trained to the end and measured."
    if not comparison.judged:
        shown = joined([_named(comparison, task, places) for task in known])
        return f"changes {shown}; with one seed nothing can be called larger than noise: two or more would tell what it means."
    left = [main_title(task) for task in known if task not in comparison.judged]
    missing = f" {joined(left)} cannot be judged, with fewer than two seeds." if left else ""
    return _of_tasks(comparison, places) + _of_mean(comparison, places) + missing


def _of_tasks(comparison: Comparison, places: int) -> str:
    judged, found = comparison.judged, comparison.differences
    beyond = [task for task in judged if found[task].beyond_noise]
    if not beyond:
        held = f"all {len(judged)} intervals hold" if len(judged) > 1 else "the only interval holds"
        return f"changes no task by more than noise: {held} 0."
    raised = [task for task in beyond if found[task].mean > 0]
    lowered = [task for task in beyond if task not in raised]
    moves = [
        f"{verb} {joined([_named(comparison, task, places) for task in tasks])}"
        for verb, tasks in (("raises", raised), ("lowers", lowered))
        if tasks
    ]
    others = len(judged) - len(beyond)
    rest = {0: "", 1: " The other difference is not larger."}.get(
        others, f" The other {others} of {len(judged)} differences are not larger."
    )
    return f"{joined(moves)} by more than noise.{rest}"


def _named(comparison: Comparison, task: str, places: int) -> str:
    return f"**{main_title(task)}** ({difference_text(comparison.differences[task], places)})"


def _of_mean(comparison: Comparison, places: int) -> str:
    found = comparison.differences[MEAN]
    if np.isnan(found.low) or len(comparison.judged) < 2:
        return ""
    size = "larger" if found.beyond_noise else "not larger"
    return f" The mean of the tasks changes by {difference_text(found, places)}, {size} than noise."


def _chance(compared: list[Comparison]) -> str:
    judged = sum(len(one.judged) for one in compared)
    return f"{by_chance(judged)} Chance is that of seeds only, not of the choice of validation images." if judged else ""


def _same(study: TasksStudy) -> str:
    """Say which task has no form of its own."""
    own = {form.name for form in study.forms}
    same = [task for task in study.tasks if task not in own]
    if not same:
        return ""
    return f"{joined(same).capitalize()} is of detected boxes, so that with these tasks alone and jointly are the same network."


def _failures(study: TasksStudy) -> str:
    failed, started = len(study.failures), len(study.failures) + len(study.trained)
    return f"{failed} of {started} trainings failed: see Failures below." if failed else ""

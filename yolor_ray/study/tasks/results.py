"""Hold what a study of tasks found, and estimate what its report tells: what each form reached, and how forms differ.

Numbers are 0 to 1, NaN where the validation set has nothing that they could be measured on. Chance is that of seeds alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolor_ray.config.network import TASKS
from yolor_ray.evaluate.metrics import FITNESS, fitness
from yolor_ray.study.estimates import UNKNOWN, Estimate, over_seeds
from yolor_ray.study.results import Failure

MORE = {"detect": "AP50", "classify": "classify/F1", "embed": "embed/rank1", "segment": "segment/AP50", "pose": "pose/AP50"}
"""A second number of each task, beside its main one in `FITNESS`."""
ALONE, JOINT, IMPLICIT = "alone", "joint", "joint-implicit"
"""What is compared: for each task the form that learns it alone, all tasks on shared features, and those with implicit knowledge."""
COMPARISONS = ((JOINT, ALONE), (IMPLICIT, JOINT), (IMPLICIT, ALONE))
"""Which one is subtracted from which."""
MEAN = "mean"
"""Stands for all tasks together, where a task is named."""


@dataclass(frozen=True)
class StudyArm:
    """One way to share tasks out among networks."""

    name: str
    """The task that it learns alone, JOINT or IMPLICIT."""
    tasks: tuple[str, ...]
    """What it learns, in the order of TASKS."""


@dataclass(frozen=True)
class TaskTrialResult:
    """One network that was trained to its end."""

    form: str
    seed: int
    run: str
    """URL of the run folder."""
    metrics: dict[str, float]
    """All numbers of the tasks that it has learned, and of no other."""
    parameters: int
    """As trained."""
    fused_parameters: int
    """Folded for inference."""
    minutes: float
    """Time that training took."""


@dataclass(frozen=True)
class TasksStudy:
    """Everything that the report of a study of tasks tells."""

    forms: tuple[StudyArm, ...]
    """Those of single tasks, then JOINT and IMPLICIT."""
    trained: tuple[TaskTrialResult, ...]
    failures: tuple[Failure, ...]
    """Their variant is a form's name."""
    summary: dict[str, Any]
    """What was done on what with which command, in the order in which it is told: text, numbers."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """What is learned in all."""
        return self.forms[-1].tasks


@dataclass(frozen=True)
class Comparison:
    """Tell what one form does better than another, seed by seed."""

    form: str
    against: str
    differences: dict[str, Estimate]
    """form - against in the main number of each task and, by MEAN, in the mean of those of the tasks; unknown where one of the two is."""
    seeds: dict[str, tuple[int, ...]]
    """Finished by both, by task and MEAN."""

    @property
    def judged(self) -> list[str]:
        """Tasks for which the noise between seeds is known."""
        return [task for task, found in self.differences.items() if task != MEAN and not np.isnan(found.low)]


def make_arms(tasks: Sequence[str]) -> tuple[StudyArm, ...]:
    """Return the forms that are to be compared.

    A mask, keypoints or an embedding is that of a detected box, so detection is learned along; a task whose form is the joint one for
    that reason, as there is no other task, has no form of its own.
    """
    every = tuple(task for task in TASKS if task in tasks)
    alone = {task: (task,) if task in ("detect", "classify") else ("detect", task) for task in every}
    own = (StudyArm(task, learned) for task, learned in alone.items() if learned != every)
    return (*own, StudyArm(JOINT, every), StudyArm(IMPLICIT, every))


def columns_of(task: str) -> tuple[str, str]:
    """Return the names of a task's numbers, the main one first."""
    return FITNESS[task], MORE[task]


def trials_of_arm(study: TasksStudy, form: str) -> list[TaskTrialResult]:
    """Return the networks of a form, by seed."""
    return sorted((one for one in study.trained if one.form == form), key=lambda one: one.seed)


def reached(study: TasksStudy, form: StudyArm, metric: str) -> Estimate:
    """Return a number of a form over its seeds."""
    return over_seeds([one.metrics.get(metric, np.nan) for one in trials_of_arm(study, form.name)])


def overall(study: TasksStudy, form: StudyArm) -> Estimate:
    """Return the mean of a form's main numbers, over its seeds."""
    found = [fitness(one.metrics, form.tasks) for one in trials_of_arm(study, form.name)]
    return over_seeds([number if number >= 0 else np.nan for number in found])


def compare(study: TasksStudy, form: str, against: str) -> Comparison:
    """Return form - against, paired by seed, with Student's t interval over seeds."""
    by_task = {task: _paired(study, form, against, task) for task in study.tasks}
    # What has no number anywhere must not hide the mean of what has.
    known = [found for found in by_task.values() if any(np.isfinite(difference) for difference in found.values())]
    common = set.intersection(*(set(found) for found in known)) if known else set()
    by_task[MEAN] = {seed: float(np.mean([found[seed] for found in known])) for seed in sorted(common)}
    estimates = {task: over_seeds(list(found.values())) if found else UNKNOWN for task, found in by_task.items()}
    return Comparison(form, against, estimates, {task: tuple(found) for task, found in by_task.items()})


def best(study: TasksStudy) -> str | None:
    """Return the joint form with the highest mean of main numbers; None where none is known.

    Of forms with fewer seeds than the other it is never one: a mean over fewer would win by the seeds that it lacks.
    """
    rows = [(form.name, len(trials_of_arm(study, form.name)), overall(study, form).mean) for form in study.forms[-2:]]
    most = max(seeds for _, seeds, _ in rows)
    known = {name: mean for name, seeds, mean in rows if seeds == most and np.isfinite(mean)}
    return max(known, key=lambda name: known[name], default=None)


def _paired(study: TasksStudy, form: str, against: str, task: str) -> dict[int, float]:
    ours, theirs = _main_numbers(study, form, task), _main_numbers(study, against, task)
    return {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}


def _main_numbers(study: TasksStudy, who: str, task: str) -> dict[int, float]:
    """Return the main number of a task by seed, of a form or of whichever learns the task alone."""
    form = task if who == ALONE else who
    return {one.seed: one.metrics.get(FITNESS[task], np.nan) for one in trials_of_arm(study, form)}

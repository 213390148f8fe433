"""Results of a comparison of tasks, and the estimates of its report: means of each arm, and differences between arms.

An arm is a set of tasks that one network learns: one task alone, or all tasks jointly. Numbers are 0 to 1, and NaN where the
validation set has nothing to measure on. The intervals cover noise between seeds alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolor_ray.config.network import TASKS
from yolor_ray.evaluate.coco import value_or
from yolor_ray.evaluate.metrics import MAIN_METRICS, fitness
from yolor_ray.study.estimates import UNKNOWN, Estimate, mean_over_seeds
from yolor_ray.study.results import Failure

SECOND_METRICS = {
    "detect": "AP50",
    "classify": "classify/F1",
    "embed": "embed/rank1",
    "segment": "segment/AP50",
    "pose": "pose/AP50",
}
"""Second metric of each task; `FITNESS` has the main metric."""
ALONE, JOINT, IMPLICIT = "alone", "joint", "joint-implicit"
"""Sides of a comparison: the arms of single tasks, each for its task; all tasks jointly; all jointly with implicit knowledge."""
COMPARISONS = ((JOINT, ALONE), (IMPLICIT, JOINT), (IMPLICIT, ALONE))
"""Pairs of an arm and the reference that is subtracted from it."""
MEAN = "mean"
"""Stands for the mean of all tasks in place of a task's name."""


@dataclass(frozen=True)
class StudyArm:
    """One kind of network, by its learned tasks."""

    name: str
    """The task that is learned alone, JOINT or IMPLICIT."""
    tasks: tuple[str, ...]
    """Learned tasks, in the order of TASKS."""


@dataclass(frozen=True)
class TaskTrialResult:
    """One finished trial of a comparison of tasks."""

    arm: str
    seed: int
    run: str
    """URL of the run folder."""
    metrics: dict[str, float]
    """All metrics of the learned tasks, and of no other task."""
    parameters: int
    """As trained."""
    fused_parameters: int
    """Fused for inference."""
    minutes: float
    """Training time."""


@dataclass(frozen=True)
class TasksStudy:
    """Content of the report of a comparison of tasks."""

    arms: tuple[StudyArm, ...]
    """Arms of single tasks, then JOINT and IMPLICIT."""
    trials: tuple[TaskTrialResult, ...]
    failures: tuple[Failure, ...]
    """Failed trials; their variant is an arm's name."""
    summary: dict[str, Any]
    """Data, schedule, command and commit in the order of the report: text or numbers."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """All tasks of the study."""
        return self.arms[-1].tasks


@dataclass(frozen=True)
class Comparison:
    """Differences between an arm and a reference, paired by seed."""

    arm: str
    reference: str
    differences: dict[str, Estimate]
    """arm - reference in the main metric of each task, and by MEAN in the mean of these metrics; unknown where a side is unknown."""
    seeds: dict[str, tuple[int, ...]]
    """Seeds that both sides finished, by task and MEAN."""

    @property
    def testable_tasks(self) -> list[str]:
        """Tasks for which the noise between seeds is known."""
        return [task for task, difference in self.differences.items() if task != MEAN and not np.isnan(difference.low)]


def make_arms(tasks: Sequence[str]) -> tuple[StudyArm, ...]:
    """Return the arms that the study compares.

    A mask, keypoints or an embedding belongs to a detected box, so the arm of such a task learns detection too. If detection and one such
    task are all tasks, that task's arm would equal JOINT and is left out.
    """
    ordered = tuple(task for task in TASKS if task in tasks)
    learned = {task: (task,) if task in ("detect", "classify") else ("detect", task) for task in ordered}
    single = (StudyArm(task, arm_tasks) for task, arm_tasks in learned.items() if arm_tasks != ordered)
    return (*single, StudyArm(JOINT, ordered), StudyArm(IMPLICIT, ordered))


def metrics_of_task(task: str) -> tuple[str, str]:
    """Return the names of a task's metrics, the main metric first."""
    return MAIN_METRICS[task], SECOND_METRICS[task]


def trials_of_arm(study: TasksStudy, arm: str) -> list[TaskTrialResult]:
    """Return the trials of an arm, by seed."""
    return sorted((trial for trial in study.trials if trial.arm == arm), key=lambda trial: trial.seed)


def estimate_metric(study: TasksStudy, arm: StudyArm, metric: str) -> Estimate:
    """Return the mean of a metric over an arm's seeds."""
    return mean_over_seeds([trial.metrics.get(metric, np.nan) for trial in trials_of_arm(study, arm.name)])


def estimate_task_mean(study: TasksStudy, arm: StudyArm) -> Estimate:
    """Return the mean of an arm's main metrics over its seeds."""
    values = [fitness(trial.metrics, arm.tasks) for trial in trials_of_arm(study, arm.name)]
    return mean_over_seeds([value_or(value, np.nan) for value in values])


def compare(study: TasksStudy, arm: str, reference: str) -> Comparison:
    """Return arm - reference, paired by seed, with Student's t interval over seeds."""
    by_task = {task: _paired(study, arm, reference, task) for task in study.tasks}
    # A task without any number must not make the mean of the others unknown.
    measured = [pairs for pairs in by_task.values() if any(np.isfinite(difference) for difference in pairs.values())]
    common_seeds = set.intersection(*(set(pairs) for pairs in measured)) if measured else set()
    by_task[MEAN] = {seed: float(np.mean([pairs[seed] for pairs in measured])) for seed in sorted(common_seeds)}
    estimates = {task: mean_over_seeds(list(pairs.values())) if pairs else UNKNOWN for task, pairs in by_task.items()}
    return Comparison(arm, reference, estimates, {task: tuple(pairs) for task, pairs in by_task.items()})


def best_arm(study: TasksStudy) -> str | None:
    """Return the joint arm with the highest mean of main metrics; None where no mean is known.

    An arm with fewer seeds than the other cannot win: its mean could be high because of the missing seeds.
    """
    rows = [(arm.name, len(trials_of_arm(study, arm.name)), estimate_task_mean(study, arm).mean) for arm in study.arms[-2:]]
    most_seeds = max(seeds for _, seeds, _ in rows)
    means = {name: mean for name, seeds, mean in rows if seeds == most_seeds and np.isfinite(mean)}
    return max(means, key=lambda name: means[name], default=None)


def _paired(study: TasksStudy, arm: str, reference: str, task: str) -> dict[int, float]:
    values, reference_values = _main_metric(study, arm, task), _main_metric(study, reference, task)
    return {seed: values[seed] - reference_values[seed] for seed in values if seed in reference_values}


def _main_metric(study: TasksStudy, side: str, task: str) -> dict[int, float]:
    """Return the main metric of a task by seed, for an arm or for ALONE, the arm that learns the task alone."""
    arm = task if side == ALONE else side
    return {trial.seed: trial.metrics.get(MAIN_METRICS[task], np.nan) for trial in trials_of_arm(study, arm)}

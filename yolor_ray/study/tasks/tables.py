"""Markdown tables of a comparison of tasks: metrics of each arm, differences between arms, and costs."""

import numpy as np

from yolor_ray.evaluate.metrics import MAIN_METRICS
from yolor_ray.report.markdown import UNKNOWN, table
from yolor_ray.study.paper_results import SOURCE
from yolor_ray.study.tasks.results import (
    ALONE,
    COMPARISONS,
    IMPLICIT,
    JOINT,
    MEAN,
    Comparison,
    StudyArm,
    TasksStudy,
    compare,
    estimate_metric,
    estimate_task_mean,
    metrics_of_task,
    trials_of_arm,
)
from yolor_ray.study.wording import format_difference, format_mean, joint_tasks_table, points_decimals

TITLES = {ALONE: "alone", JOINT: "joint", IMPLICIT: "joint + implicit"}


def arm_title(arm: str) -> str:
    """Return an arm's title in tables."""
    return TITLES.get(arm, f"{arm} alone")


def metric_title(task: str, metric: str) -> str:
    """Return a metric's title: `detect AP` or `classify mAP`."""
    return f"{task} {metric.rpartition('/')[2]}"


def main_title(task: str) -> str:
    """Return the title of a task's main metric, or of MEAN."""
    return "mean of the tasks" if task == MEAN else metric_title(task, MAIN_METRICS[task])


def make_comparisons(study: TasksStudy) -> list[Comparison]:
    """Return all comparisons, in the order of the report."""
    return [compare(study, arm, reference) for arm, reference in COMPARISONS]


def difference_decimals(comparisons: list[Comparison]) -> int:
    """Return the decimals of all differences in a report."""
    return points_decimals([difference for comparison in comparisons for difference in comparison.differences.values()])


def metrics_section(study: TasksStudy) -> str:
    """Return the metrics of each arm in each of its tasks, as Markdown."""
    columns = [(task, metric) for task in study.tasks for metric in metrics_of_task(task)]
    estimates = {arm: [estimate_metric(study, arm, metric) for _, metric in columns] for arm in study.arms}
    decimals = points_decimals([estimate for row in estimates.values() for estimate in row])
    rows = []
    for arm, row in estimates.items():
        mean = format_mean(estimate_task_mean(study, arm), decimals) if arm in study.arms[-2:] else UNKNOWN
        cells = [format_mean(estimate, decimals) for estimate in row]
        rows.append([arm_title(arm.name), ", ".join(arm.tasks), str(len(trials_of_arm(study, arm.name))), *cells, mean])
    heads = ("arm", "learns", "seeds", *(metric_title(*column) for column in columns), main_title(MEAN))
    return (
        "## Metrics\n\nMeans over seeds, in points ± half of the 95 % interval. The first metric of each task is its main metric, and the "
        f"last column is the mean of the main metrics. {UNKNOWN} marks a task that an arm has not learned.\n\n"
        f"{table(heads, rows, text_columns=2)}"
    )


def differences_section(study: TasksStudy) -> str:
    """Return the differences between arms in each task's main metric, as Markdown."""
    comparisons = make_comparisons(study)
    decimals = difference_decimals(comparisons)
    rows = [
        [main_title(task), _seed_counts(comparisons, task), *(_difference(comparison, task, decimals) for comparison in comparisons)]
        for task in (*study.tasks, MEAN)
    ]
    heads = ("metric", "seeds", *(f"{arm_title(comparison.arm)} − {arm_title(comparison.reference)}" for comparison in comparisons))
    return (
        "## Differences\n\nDifferences between networks with the same seeds, in points with 95 % intervals. **Bold** differences are "
        "larger than noise; one in twenty appears so by chance alone. The interval covers seeds only. With one seed there is no interval."
        f"\n\n{table(heads, rows)}"
    )


def _seed_counts(comparisons: list[Comparison], task: str) -> str:
    """Return the number of seeds of each comparison, or one number if all are equal."""
    counts = [str(len(comparison.seeds[task])) for comparison in comparisons]
    return counts[0] if len(set(counts)) == 1 else ", ".join(counts)


def _difference(comparison: Comparison, task: str, decimals: int) -> str:
    difference = comparison.differences[task]
    text = format_difference(difference, decimals)
    return f"**{text}**" if difference.beyond_noise else text


def costs_section(study: TasksStudy) -> str:
    """Return the parameters and the training time of each arm, as Markdown."""
    rows = [[arm_title(arm.name), *_cost_cells(study, arm)] for arm in study.arms]
    heads = ("arm", "parameters", "parameters, fused", "minutes")
    return (
        "## Costs\n\nParameters as trained and fused for inference, and the mean minutes of one training run. Fusing folds implicit "
        "knowledge into the convolutions at no cost, and removes the identity directions, which only training needs."
        f"{_joint_saving(study)}\n\n{table(heads, rows)}"
    )


def _cost_cells(study: TasksStudy, arm: StudyArm) -> list[str]:
    trials = trials_of_arm(study, arm.name)
    if not trials:
        return [UNKNOWN] * 3
    return [f"{trials[0].parameters:,}", f"{trials[0].fused_parameters:,}", f"{np.mean([trial.minutes for trial in trials]):.1f}"]


def _joint_saving(study: TasksStudy) -> str:
    """Return the parameters of one joint network beside those of all single-task networks, if every arm has a trial."""
    trials = [next(iter(trials_of_arm(study, arm.name)), None) for arm in study.arms]
    sizes = [trial.fused_parameters for trial in trials if trial]
    if len(sizes) < len(study.arms) or len(sizes) < 4:
        return ""
    single = f"the {len(sizes) - 2} networks of single tasks have {sum(sizes[:-2]):,}"
    return f" Fused, one network for all tasks has {sizes[-1]:,} parameters, and {single}."


def paper_section() -> str:
    """Return the paper's table of jointly learned tasks, as Markdown."""
    return (
        f"## The paper's numbers\n\nFor orientation, in points of detection ({SOURCE}): compare with the detect columns above. "
        "The paper trained each row once, so the noise in its differences of 0.1 to 0.5 points is not known. Its network, data and "
        f"schedule differ from this study's: compare signs and order, not sizes.\n\n{joint_tasks_table()}"
    )

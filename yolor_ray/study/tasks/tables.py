"""Write the tables of a study of tasks: what each form reached, how forms differ, and what they cost."""

import numpy as np

from yolor_ray.evaluate.metrics import FITNESS
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
    columns_of,
    compare,
    overall,
    reached,
    trials_of_arm,
)
from yolor_ray.study.wording import decimals, difference_text, joint, spread_text

TITLES = {ALONE: "alone", JOINT: "joint", IMPLICIT: "joint + implicit"}


def title(form: str) -> str:
    """Return what tables call a form."""
    return TITLES.get(form, f"{form} alone")


def number_title(task: str, metric: str) -> str:
    """Return what a task's number is called: `detect AP` or `classify mAP`."""
    return f"{task} {metric.rpartition('/')[2]}"


def main_title(task: str) -> str:
    """Return what a task's main number, or their MEAN, is called."""
    return "mean of the tasks" if task == MEAN else number_title(task, FITNESS[task])


def comparisons_of(study: TasksStudy) -> list[Comparison]:
    """Return all comparisons, in the order in which they are told."""
    return [compare(study, form, against) for form, against in COMPARISONS]


def difference_places(comparisons: list[Comparison]) -> int:
    """Return the decimals of all differences in a report, so that it writes each of them in one way."""
    return decimals([found for one in comparisons for found in one.differences.values()])


def numbers(study: TasksStudy) -> str:
    """Write what each form reached in each task that it has learned."""
    columns = [(task, metric) for task in study.tasks for metric in columns_of(task)]
    found = {form: [reached(study, form, metric) for _, metric in columns] for form in study.forms}
    places = decimals([estimate for row in found.values() for estimate in row])
    rows = []
    for form, estimates in found.items():
        mean = spread_text(overall(study, form), places) if form in study.forms[-2:] else UNKNOWN
        cells = [spread_text(estimate, places) for estimate in estimates]
        rows.append([title(form.name), ", ".join(form.tasks), str(len(trials_of_arm(study, form.name))), *cells, mean])
    heads = ("form", "learns", "seeds", *(number_title(*column) for column in columns), main_title(MEAN))
    return (
        "## Numbers\n\nMeans over seeds, in points ± half of the 95 % interval. The first number of each task is its main one, and the "
        f"last column the mean of those. {UNKNOWN} stands where a form has not learned a task.\n\n{table(heads, rows, words=2)}"
    )


def differences(study: TasksStudy) -> str:
    """Write the differences between forms in each task's main number."""
    compared = comparisons_of(study)
    places = difference_places(compared)
    rows = [
        [main_title(task), _seeds(compared, task), *(_difference(one, task, places) for one in compared)] for task in (*study.tasks, MEAN)
    ]
    heads = ("number", "seeds", *(f"{title(one.form)} − {title(one.against)}" for one in compared))
    return (
        "## Differences\n\nBetween networks that were trained with the same seeds, in points with 95 % intervals; **bold** where they are "
        "larger than noise, as one number in twenty looks by chance alone. The interval covers seeds only. With one seed there is none."
        f"\n\n{table(heads, rows)}"
    )


def _seeds(compared: list[Comparison], task: str) -> str:
    """Return how many seeds each comparison has, once if that is the same for all."""
    counts = [str(len(one.seeds[task])) for one in compared]
    return counts[0] if len(set(counts)) == 1 else ", ".join(counts)


def _difference(comparison: Comparison, task: str, places: int) -> str:
    found = comparison.differences[task]
    text = difference_text(found, places)
    return f"**{text}**" if found.beyond_noise else text


def costs(study: TasksStudy) -> str:
    """Write the parameters of each form, and the time that its training took."""
    rows = [[title(form.name), *_cost_cells(study, form)] for form in study.forms]
    heads = ("form", "parameters", "parameters, fused", "minutes")
    return (
        "## Costs\n\nParameters as trained and fused (folded for inference, where implicit knowledge costs nothing and the directions of "
        f"identities, which only training needs, are gone), and the mean minutes of one training.{_instead(study)}"
        f"\n\n{table(heads, rows)}"
    )


def _cost_cells(study: TasksStudy, form: StudyArm) -> list[str]:
    found = trials_of_arm(study, form.name)
    if not found:
        return [UNKNOWN] * 3
    return [f"{found[0].parameters:,}", f"{found[0].fused_parameters:,}", f"{np.mean([one.minutes for one in found]):.1f}"]


def _instead(study: TasksStudy) -> str:
    """Say what one network saves, if every form was trained."""
    first = [next(iter(trials_of_arm(study, form.name)), None) for form in study.forms]
    sizes = [one.fused_parameters for one in first if one]
    if len(sizes) < len(study.forms) or len(sizes) < 4:
        return ""
    return f" Fused, one network for all has {sizes[-1]:,} parameters, and the {len(sizes) - 2} of single tasks have {sum(sizes[:-2]):,}."


def paper() -> str:
    """Write the paper's own table of tasks learned jointly."""
    return (
        f"## The paper's numbers\n\nFor orientation, in points of detection ({SOURCE}): set them beside the detect columns above. "
        "The paper trained each row once, so how much of its differences of 0.1 to 0.5 points is noise is not known. Its network, data "
        f"and schedule are not this study's: compare signs and order, not sizes.\n\n{joint()}"
    )

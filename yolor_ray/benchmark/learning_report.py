"""Files of the learning benchmark: the report as Markdown, every validation as CSV, and the picture."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolor_ray.benchmark.curves import ComparedCurves, Curve, MeanPoint, mean_curve
from yolor_ray.report.csv_json import csv_text
from yolor_ray.report.markdown import UNKNOWN, escape, table
from yolor_ray.study.wording import setup_section

REPORT_FILE, TABLE_FILE, PICTURE_FILE = "learning.md", "learning.csv", "learning.png"
COLUMNS = ("curve", "seed", "epoch", "minute", "AP", "AP50", "images_per_s")
TOLERANCE = 0.1
"""Largest relative difference between the training time of a seed and the budget that the report does not mention."""
READING = f"""## How to read this

A minute is a minute of training: the sum of the durations of the epochs, with loading and augmentation. Validation and the writing of \
checkpoints after an epoch are not counted, and neither is the calibration run that measures the speed. Learning rate and augmentation \
follow from the number of epochs, so a curve with another budget has other points, not more of them. The mean is over seeds after the \
same number of epochs, and its minute is the mean of their minutes. The interval is Student's t interval of the mean, 95 %, over seeds. \
The interval does not cover the choice of validation images, nor other machines. {TABLE_FILE} has every validation of every seed, and the \
compared curves. The folders seed-N hold the weights, curves and settings of the runs."""


@dataclass(frozen=True)
class LearningResult:
    """Content of the report."""

    budget_minutes: float
    curves: tuple[Curve, ...]
    """Curve of each seed."""
    compared: ComparedCurves
    summary: Mapping[str, Any]
    """Data, settings, command, commit and machine in the order of the report: text or numbers."""


def learning_files(result: LearningResult) -> dict[str, bytes]:
    """Return learning.md, learning.csv and learning.png. Accuracies are 0 to 1; an unknown number is empty in CSV."""
    # Imported here because matplotlib takes a second, and the other benchmarks never draw.
    from yolor_ray.benchmark.learning_plot import learning_png

    picture = learning_png(result.curves, result.compared.curves)
    return {REPORT_FILE: _report(result).encode(), TABLE_FILE: _csv(result).encode(), PICTURE_FILE: picture}


def _csv(result: LearningResult) -> str:
    curves = (*result.curves, *result.compared.curves)
    return csv_text(COLUMNS, [{"curve": curve.name, "seed": curve.seed, **vars(point)} for curve in curves for point in curve.points])


def _report(result: LearningResult) -> str:
    means = mean_curve(result.curves)
    header = ("minute", "epoch", "AP", "low", "high", "AP50")
    rows = [[f"{mean.minute:.2f}", str(mean.epoch), *map(_fraction, (*vars(mean.AP).values(), mean.AP50.mean))] for mean in means]
    sections = [
        "# Learning: AP by minute of training",
        _verdict(result, means[-1]),
        _missed_budget(result),
        table(header, rows, text_columns=0),
        f"![{PICTURE_FILE}]({PICTURE_FILE})",
        _compared_section(result.compared),
        setup_section(result.summary),
        READING,
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _fraction(number: float) -> str:
    return UNKNOWN if np.isnan(number) else f"{number:z.3f}".replace("-", "−")


def _verdict(result: LearningResult, last: MeanPoint) -> str:
    seeds = len(result.curves)
    interval = f"mean of {seeds} seeds, 95 % interval {_fraction(last.AP.low)} to {_fraction(last.AP.high)}"
    accuracy = f"**AP {_fraction(last.AP.mean)} after {last.minute:.2f} minutes** ({interval if seeds > 1 else 'one seed, no interval'})"
    return f"{escape(result.curves[0].name)}: {accuracy}, AP50 {_fraction(last.AP50.mean)}."


def _missed_budget(result: LearningResult) -> str:
    """Return a sentence for each seed whose training time differs from the budget by more than TOLERANCE."""
    minutes = {curve.seed: curve.points[-1].minute for curve in result.curves}
    shares = {seed: minute / result.budget_minutes - 1 for seed, minute in minutes.items()}
    return " ".join(
        f"Seed {seed} missed the budget: found {minutes[seed]:.2f} minutes of training, expected {result.budget_minutes:g} "
        f"({abs(share):.0%} {'more' if share > 0 else 'less'})."
        for seed, share in shares.items()
        if abs(share) > TOLERANCE
    )


def _compared_section(compared: ComparedCurves) -> str:
    if not compared.curves:
        return ""
    ends = [(curve.name, curve.points[-1]) for curve in compared.curves]
    rows = [[escape(name), f"{last.minute:.2f}", _fraction(last.AP), _fraction(last.AP50)] for name, last in ends]
    comments = [escape(comment) for comment in compared.comments]
    return "\n\n".join(("## Compared curves", *comments, table(("curve", "last minute", "AP", "AP50"), rows)))

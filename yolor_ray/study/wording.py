"""Common texts of the reports: the setup, variants, differences with their intervals, and the paper's table of joint tasks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from yolor_ray.config.presets import PLAIN
from yolor_ray.config.variants import VARIANTS
from yolor_ray.report.markdown import UNKNOWN, escape, percent_points, table
from yolor_ray.study.estimates import CONFIDENCE, Estimate, median_half_width
from yolor_ray.study.paper_results import JOINT_TASK_ROWS, PaperRow
from yolor_ray.study.results import METRICS


def setup_section(summary: Mapping[str, Any]) -> str:
    """Return the setup of a study (data, schedule, command and commit) as Markdown."""
    return "## Setup\n\n" + table(("setting", "value"), [[escape(key), escape(value)] for key, value in summary.items()], text_columns=2)


def points_decimals(estimates: Sequence[Estimate]) -> int:
    """Return the decimals of points: two where the median half-width of the intervals is under one point, else one."""
    return 2 if median_half_width(estimates) < 0.01 else 1


def format_difference(estimate: Estimate, decimals: int) -> str:
    """Return a difference and its interval, such as `+0.62 [+0.21, +1.03]`."""
    mean, low, high = (percent_points(share, decimals, "+") for share in (estimate.mean, estimate.low, estimate.high))
    return mean if UNKNOWN in (low, high) else f"{mean} [{low}, {high}]"


def format_mean(estimate: Estimate, decimals: int) -> str:
    """Return a mean and the half-width of its interval, such as `38.21 ± 0.40`."""
    half_width = percent_points((estimate.high - estimate.low) / 2, decimals)
    return percent_points(estimate.mean, decimals) + ("" if half_width == UNKNOWN else f" ± {half_width}")


def variant_title(variant: str) -> str:
    """Return a variant's title for Markdown."""
    return escape(VARIANTS[variant].title)


def describe_implicit(variant: str) -> str:
    """Return the settings by which a variant differs from a network without implicit knowledge."""
    implicit = VARIANTS[variant].implicit
    settings = [(field.name, getattr(implicit, field.name)) for field in fields(implicit)]
    changed = [f"{name} {value}" for name, value in settings if value != getattr(PLAIN, name)]
    return ", ".join(changed) or "no implicit knowledge"


def describe_chance(comparisons: int) -> str:
    """Return a sentence with the expected number of comparisons beyond noise when nothing differs."""
    expected = comparisons * (1 - CONFIDENCE)
    if comparisons == 1:
        return "By chance alone, one comparison in 20 appears larger than noise. This study has one comparison."
    number = f"about {math.floor(expected + 0.5)}" if expected >= 1 else f"fewer than one ({expected:.2g} on average)"
    return f"Of {comparisons} comparisons, {number} would appear larger than noise by chance alone."


def paper_cells(row: PaperRow) -> list[str]:
    """Return table cells of a row of the paper: its tables, then its numbers in points."""
    return [", ".join(map(str, row.tables)), *(f"{number:.1f}" for number in row.points)]


def joint_tasks_table() -> str:
    """Return the paper's table of jointly learned tasks as Markdown."""
    rows = [[escape(name), *paper_cells(row)[1:]] for name, row in JOINT_TASK_ROWS.items()]
    return "Table 3, jointly learned tasks (JDC: with multi-label classification, JDE: with feature embedding):\n\n" + table(
        ("paper", *(name.upper() for name in METRICS)), rows
    )

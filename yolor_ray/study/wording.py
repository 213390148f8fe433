"""Write the words of an ablation: its variants, and differences with the decimals that their intervals deserve."""

import math
from collections.abc import Sequence
from dataclasses import fields

from yolor_ray.config.presets import PLAIN
from yolor_ray.config.variants import VARIANTS
from yolor_ray.report.markdown import UNKNOWN, escape, points, table
from yolor_ray.study.estimates import CONFIDENCE, Estimate, half_width
from yolor_ray.study.paper_results import JOINT, PaperRow
from yolor_ray.study.results import METRICS


def decimals(estimates: Sequence[Estimate]) -> int:
    """Return the decimals of points that the intervals deserve: two where they reach less than a point to each side."""
    return 2 if half_width(estimates) < 0.01 else 1


def difference_text(found: Estimate, places: int) -> str:
    """Return a difference and its interval, such as `+0.62 [+0.21, +1.03]`."""
    mean, low, high = (points(share, places, "+") for share in (found.mean, found.low, found.high))
    return mean if UNKNOWN in (low, high) else f"{mean} [{low}, {high}]"


def spread_text(found: Estimate, places: int) -> str:
    """Return a mean and the half-width of its interval, such as `38.21 ± 0.40`."""
    reach = points((found.high - found.low) / 2, places)
    return points(found.mean, places) + ("" if reach == UNKNOWN else f" ± {reach}")


def title(variant: str) -> str:
    """Return a variant's title for Markdown."""
    return escape(VARIANTS[variant].title)


def configuration(variant: str) -> str:
    """Return the words by which a variant differs from a network without implicit knowledge."""
    implicit = VARIANTS[variant].implicit
    words = [(field.name, getattr(implicit, field.name)) for field in fields(implicit)]
    changed = [f"{name} {value}" for name, value in words if value != getattr(PLAIN, name)]
    return ", ".join(changed) or "no implicit knowledge"


def by_chance(comparisons: int) -> str:
    """Say how many of so many comparisons look larger than noise when nothing differs."""
    expected = comparisons * (1 - CONFIDENCE)
    if comparisons == 1:
        return "By chance alone, one comparison in 20 looks larger than noise, and this is one comparison."
    number = f"about {math.floor(expected + 0.5)}" if expected >= 1 else f"fewer than one ({expected:.2g} on average)"
    return f"Of {comparisons} comparisons, {number} would look larger than noise by chance alone."


def paper_cells(row: PaperRow) -> list[str]:
    """Return table cells of a row of the paper: its tables, then its numbers in points."""
    return [", ".join(map(str, row.tables)), *(f"{number:.1f}" for number in row.points)]


def joint() -> str:
    """Write the paper's table of several tasks at once."""
    rows = [[escape(name), *paper_cells(row)[1:]] for name, row in JOINT.items()]
    return "Table 3, several tasks at once (JDC: with multi-label classification, JDE: with feature embedding):\n\n" + table(
        ("paper", *(name.upper() for name in METRICS)), rows
    )

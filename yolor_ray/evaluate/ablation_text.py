"""Write the words of an ablation: its variants, and differences with the decimals that their intervals deserve."""

from collections.abc import Sequence
from dataclasses import fields

from yolor_ray.evaluate.ablation_summary import Summary, half_width
from yolor_ray.evaluate.compare import Estimate
from yolor_ray.evaluate.markdown import UNKNOWN, escape, points
from yolor_ray.presets import PLAIN
from yolor_ray.variants import VARIANTS


def decimals(estimates: Sequence[Estimate]) -> int:
    """Return the decimals of points that the intervals deserve: two where they reach less than a point to each side."""
    return 2 if half_width(estimates) < 0.01 else 1


def difference_decimals(summary: Summary) -> int:
    """Return the decimals of all differences in a report, so that it writes each of them in one way."""
    return decimals([row.differences["AP"] for row in summary.rows if row.paired])


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

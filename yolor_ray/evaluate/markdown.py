"""Write numbers, words from outside and tables as Markdown that also reads well as plain text."""

import math
import re
from collections.abc import Sequence
from dataclasses import fields

from yolor_ray.evaluate.ablation_summary import Summary, half_width
from yolor_ray.evaluate.compare import Estimate
from yolor_ray.presets import PLAIN
from yolor_ray.variants import VARIANTS

UNKNOWN = "–"
LONGEST = 300
"""Characters of a word from outside; the CSV and JSON files have the whole."""


def decimals(estimates: Sequence[Estimate]) -> int:
    """Return the decimals of points that the intervals deserve: two where they reach less than a point to each side."""
    return 2 if half_width(estimates) < 0.01 else 1


def difference_decimals(summary: Summary) -> int:
    """Return the decimals of all differences in a report, so that it writes each of them in one way."""
    return decimals([row.differences["AP"] for row in summary.rows if row.paired])


def points(share: float, places: int, sign: str = "-") -> str:
    """Return a number of 0 to 1 in points; `sign` is `+` for a difference."""
    return UNKNOWN if math.isnan(share) else f"{100 * share:{sign}z.{places}f}".replace("-", "−")


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


def escape(text: object) -> str:
    """Return a word from outside as one line of Markdown that means nothing but itself, at most so long."""
    line = _one_line(str(text))
    line = re.sub(r"([\\|*`<~\[\]])", r"\\\1", line)
    # Markdown takes no notice of underscores between letters.
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line)


def code(text: str) -> str:
    """Return a word from outside as it is typed, for text and tables."""
    line = _one_line(text).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if "`" in line else ""
    return f"{fence}{space}{line}{space}{fence}"


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Return a table whose columns are aligned in plain text too; after the first `words` columns come numbers."""
    widths = [max(3, *(len(row[k]) for row in (heads, *rows))) for k in range(len(heads))]
    rule = ["-" * width if k < words else "-" * (width - 1) + ":" for k, width in enumerate(widths)]
    lines = [_aligned(row, widths, words) for row in (heads, *rows)]
    return "\n".join((lines[0], _aligned(rule, widths, words), *lines[1:]))


def _aligned(cells: Sequence[str], widths: Sequence[int], words: int) -> str:
    padded = [cell.ljust(width) if k < words else cell.rjust(width) for k, (cell, width) in enumerate(zip(cells, widths, strict=True))]
    return f"| {' | '.join(padded)} |"


def joined(items: Sequence[str]) -> str:
    """Return `a`, `a and b`, or `a, b and c`."""
    return " and ".join(filter(None, (", ".join(items[:-1]), *items[-1:])))

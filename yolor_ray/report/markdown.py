"""Format numbers, foreign text and tables as Markdown that is also readable as plain text."""

import math
import re
from collections.abc import Sequence

UNKNOWN = "–"
MAX_LENGTH = 300
"""Longest foreign text in a report (characters); the CSV and JSON files hold the complete text."""


def percent_points(fraction: float, decimals: int, sign: str = "-") -> str:
    """Format a number from 0 to 1 in percentage points; `sign` is `+` for a difference."""
    return UNKNOWN if math.isnan(fraction) else f"{100 * fraction:{sign}z.{decimals}f}".replace("-", "−")


def escape(text: object) -> str:
    """Return foreign text as one line of Markdown without markup, cut to MAX_LENGTH characters before escaping."""
    line = _one_line(str(text))
    line = re.sub(r"([\\|*`<~\[\]])", r"\\\1", line)
    # Underscores between letters are no markup.
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line)


def code(text: str) -> str:
    """Return foreign text as inline code, also for table cells."""
    line = _one_line(text).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if "`" in line else ""
    return f"{fence}{space}{line}{space}{fence}"


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_LENGTH else line[: MAX_LENGTH - 1] + "…"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """Return a table with padded cells: the first `text_columns` columns are aligned left, and the others, numbers, right."""
    widths = [max(3, *(len(row[k]) for row in (header, *rows))) for k in range(len(header))]
    rule = ["-" * width if k < text_columns else "-" * (width - 1) + ":" for k, width in enumerate(widths)]
    return "\n".join(_table_line(row, widths, text_columns) for row in (header, rule, *rows))


def _table_line(cells: Sequence[str], widths: Sequence[int], text_columns: int) -> str:
    columns = enumerate(zip(cells, widths, strict=True))
    padded = [cell.ljust(width) if k < text_columns else cell.rjust(width) for k, (cell, width) in columns]
    return f"| {' | '.join(padded)} |"


def join_with_and(items: Sequence[str]) -> str:
    """Return `a`, `a and b`, or `a, b and c`."""
    return " and ".join(filter(None, (", ".join(items[:-1]), *items[-1:])))

"""Write numbers, words from outside and tables as Markdown that also reads well as plain text."""

import math
import re
from collections.abc import Sequence

UNKNOWN = "–"
LONGEST = 300
"""Characters of a word from outside; the CSV and JSON files have the whole."""


def points(share: float, places: int, sign: str = "-") -> str:
    """Return a number of 0 to 1 in points; `sign` is `+` for a difference."""
    return UNKNOWN if math.isnan(share) else f"{100 * share:{sign}z.{places}f}".replace("-", "−")


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

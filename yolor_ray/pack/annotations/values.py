"""Read numbers and ids in annotation files, which tools write as numbers or as text."""

import math
import re
from typing import Any

MAX_NUMBER = 1e30
WHOLE_NUMBER = re.compile(r"([+-]?\d{1,100})(\.0*)?", re.ASCII)
"""Text that stands for a whole number; group 1 holds its digits."""


def is_number(value: Any) -> bool:
    """Return True if a JSON value is a finite number that fits a float; NaN and true are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_NUMBER


def id_value(value: Any) -> float | str | None:
    """Return an id by its value, or None for a value that is no id.

    Numbers are equal by value, and text of a whole number equals the number: 7, 7.0, "7" and "007" are one id. Other text is an id as it
    stands, without white space around it.
    """
    if isinstance(value, str):
        text = value.strip()
        whole = WHOLE_NUMBER.fullmatch(text)
        return int(whole[1]) if whole else text or None
    if isinstance(value, int):
        return None if isinstance(value, bool) else value
    if isinstance(value, float) and math.isfinite(value):
        return int(value) if value.is_integer() else value
    return None


def parse_number(text: str) -> float:
    """Return the number that a text stands for, or NaN."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def claimed_size(width: Any, height: Any) -> tuple[int, int] | None:
    """Return the image size that an annotation file claims, or None if either side is no number above 0."""
    sides = [parse_number(side) if isinstance(side, str) else side for side in (width, height)]
    if not all(is_number(side) and round(side) > 0 for side in sides):
        return None
    return round(sides[0]), round(sides[1])

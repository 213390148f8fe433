"""Read the rows of YOLO text files, before the layout of the dataset is known: a class and numbers."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from yolor_ray.pack.annotations.faults import Fault

BOX_COLUMNS = 5
"""Columns of a box: class cx cy w h."""


class Row(NamedTuple):
    """One line of a text file."""

    line: int
    """Line in the file, from 1."""
    label: int
    """Index into the classes."""
    numbers: tuple[float, ...]
    """Columns after the class; finite."""


def read_rows(data: bytes, url: str, image: str, classes: int) -> Iterator[Row | Fault]:
    """Yield the rows of a text file, and a fault for each line that cannot be read; empty lines and comments (#) are no rows.

    Args:
        data: content of the file.
        url: URL of the file.
        image: name of the image.
        classes: number of classes.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield Fault("bad_encoding", f"found bytes that are not UTF-8 ({error.reason}); image left out", url)
        return
    for line, row in enumerate(text.splitlines(), start=1):
        if row.strip() and not row.lstrip().startswith("#"):
            item = _parse_row(row.split(), line, classes)
            yield item if isinstance(item, Row) else Fault(item[0], f"{item[1]}; object left out", url, line, image=image)


def _parse_row(words: list[str], line: int, classes: int) -> Row | tuple[str, str]:
    """Return a row, or code and message of its fault."""
    if len(words) < BOX_COLUMNS or len(words) == BOX_COLUMNS + 1:
        return "bad_line", f"found {len(words)} columns, expected {BOX_COLUMNS}: class cx cy w h{_column_hint(words)}"
    label = _number(words[0])
    if not label.is_integer():
        return "bad_class_id", f"found class {words[0]!r}, expected a whole number"
    if not 0 <= label < classes:
        return "unknown_class", f"found class {words[0]}, expected 0 to {classes - 1}"
    numbers = tuple(map(_number, words[1:]))
    if not all(map(math.isfinite, numbers)):
        hint = "; write decimal points, not commas" if any("," in word for word in words) else ""
        wrong = " ".join(word for word, number in zip(words[1:], numbers, strict=True) if not math.isfinite(number))
        return "not_a_number", f"found {wrong}, expected {len(numbers)} numbers after the class{hint}"
    return Row(line, int(label), numbers)


def _number(word: str) -> float:
    try:
        # Python reads 1_0 as 10.
        return math.nan if "_" in word else float(word)
    except ValueError:
        return math.nan


def _column_hint(words: list[str]) -> str:
    if any("," in word for word in words):
        return "; separate by spaces, not commas"
    return "; looks like predictions with a confidence" if len(words) == BOX_COLUMNS + 1 else ""

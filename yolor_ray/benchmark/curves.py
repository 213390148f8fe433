"""Curves of AP by minute: their points, their mean over seeds, and the reader of others' curves."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from yolor_ray.errors import DataError
from yolor_ray.io import storage
from yolor_ray.study.estimates import Estimate, mean_over_seeds

NAME_COLUMNS = {"curve": "{}", "name": "{}", "set": "{}", "image_px": "{} px", "seed": "seed {}"}
"""Columns that tell the curves of a file apart, and their texts in the name of a curve."""


@dataclass(frozen=True)
class CurvePoint:
    """One validation."""

    minute: float
    """Training time before the validation, without earlier validations."""
    AP: float
    AP50: float = math.nan
    epoch: int | None = None
    images_per_s: float = math.nan
    """Training speed of the epoch before the validation."""


@dataclass(frozen=True)
class Curve:
    """Validations of one training, by minute."""

    name: str
    points: tuple[CurvePoint, ...]
    seed: int | None = None


@dataclass(frozen=True)
class MeanPoint:
    """Mean over seeds after the same number of epochs."""

    epoch: int | None
    minute: float
    AP: Estimate
    AP50: Estimate


@dataclass(frozen=True)
class ComparedCurves:
    """Content of a file with others' curves."""

    curves: tuple[Curve, ...] = ()
    comments: tuple[str, ...] = ()
    """Comment lines without their `#`."""


def mean_curve(curves: Sequence[Curve]) -> list[MeanPoint]:
    """Return the mean of several seeds' curves, with Student's t interval over seeds; all curves have the same epochs."""
    return [
        MeanPoint(
            points[0].epoch,
            sum(point.minute for point in points) / len(points),
            mean_over_seeds([point.AP for point in points]),
            mean_over_seeds([point.AP50 for point in points]),
        )
        for points in zip(*(curve.points for curve in curves), strict=True)
    ]


def read_curves(url: str) -> ComparedCurves:
    """Read a CSV file with the columns minute and AP, and optionally AP50 and `NAME_COLUMNS`; lines that begin with `#` are comments.

    Each combination of values in `NAME_COLUMNS` is a curve. A curve without a value in `curve` and `name` has the name of the file.

    Raises:
        DataError: the file has no rows, lacks a column, or has a value that is no number in range.
        StorageError: the file cannot be read.

    """
    try:
        lines = storage.read_bytes(url).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{url}: found a byte that is no UTF-8 at position {error.start}, expected a CSV file") from error
    comments = tuple(line.lstrip("# ") for line in lines if line.startswith("#"))
    points: dict[str, list[CurvePoint]] = {}
    for place, row in _rows(url, lines):
        points.setdefault(_curve_name(row, PurePosixPath(url).stem), []).append(_point(row, place))
    return ComparedCurves(tuple(Curve(name, tuple(sorted(own, key=lambda point: point.minute))) for name, own in points.items()), comments)


def _rows(url: str, lines: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Return the place of each row in the file, and its values by column."""
    filled = [(f"{url}, line {n}", line) for n, line in enumerate(lines, start=1) if line.strip() and not line.startswith("#")]
    (header, columns), *rows = [(place, [cell.strip() for cell in next(csv.reader([line]))]) for place, line in filled] or [(url, [])]
    if not {"minute", "AP"} <= set(columns) or len(set(columns)) < len(columns):
        raise DataError(f"{header}: found {_columns(columns)}, expected minute and AP among the columns, each column once")
    if not rows:
        raise DataError(f"{header}: found no row below the columns, expected one or more")
    for place, cells in rows:
        if len(cells) != len(columns):
            raise DataError(f"{place}: found {len(cells)} values, expected {len(columns)}, one for each of {_columns(columns)}")
    return [(place, dict(zip(columns, cells, strict=True))) for place, cells in rows]


def _columns(columns: Sequence[str]) -> str:
    return f"the columns {', '.join(columns)}" if columns else "no columns"


def _curve_name(row: Mapping[str, str], file_name: str) -> str:
    own_name = [] if row.get("curve") or row.get("name") else [file_name]
    return ", ".join([*own_name, *(text.format(row[column]) for column, text in NAME_COLUMNS.items() if row.get(column))])


def _point(row: Mapping[str, str], place: str) -> CurvePoint:
    AP50 = _number(row, "AP50", place, maximum=1) if row.get("AP50") else math.nan
    return CurvePoint(_number(row, "minute", place), _number(row, "AP", place, maximum=1), AP50)


def _number(row: Mapping[str, str], column: str, place: str, maximum: float = math.inf) -> float:
    try:
        number = float(row[column])
    except ValueError:
        number = math.nan
    if not (0 <= number <= maximum and math.isfinite(number)):
        expected = "a number, 0 or more" if maximum == math.inf else f"a number from 0 to {maximum:g}"
        raise DataError(f"{place}: found {row[column]!r} in the column {column}, expected {expected}")
    return number

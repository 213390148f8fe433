"""Write the results of studies for programs, as CSV tables and JSON. Unknown values are empty in CSV and null in JSON."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def csv_text(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a CSV table with a header line; a row may lack columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _to_builtin(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def json_text(content: Mapping[str, Any]) -> str:
    """Return one JSON object; arrays become lists."""
    return json.dumps(_to_builtin(content), ensure_ascii=False, allow_nan=False)


def _to_builtin(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _to_builtin(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _to_builtin(value.tolist())
    if isinstance(value, list | tuple):
        return [_to_builtin(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

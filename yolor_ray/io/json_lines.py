"""Parse files of one JSON object per line."""

import json
from typing import Any

from yolor_ray.errors import IntegrityError


def parse_json_lines(url: str, data: bytes) -> list[dict[str, Any]]:
    """Return the objects of a file, whose URL is for error messages.

    Raises:
        IntegrityError: a line is no JSON object.

    """
    rows = []
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise IntegrityError(f"{url}, line {number}: found no JSON ({error}); restore the file or delete the line") from error
        if not isinstance(row, dict):
            raise IntegrityError(f"{url}, line {number}: found {row!r}, expected a JSON object; restore the file or delete the line")
        rows.append(row)
    return rows

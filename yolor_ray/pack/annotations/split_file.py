"""Read which images of a data set belong to a split: a text file with one of them per line."""

from collections.abc import Callable

from yolor_ray.io.storage import read_bytes
from yolor_ray.pack.annotations.faults import Fault


def read_split(split_file: str, find: Callable[[str], str | None], missing: tuple[str, str]) -> tuple[list[str], list[Fault]]:
    """Return what the lines of a split file stand for, each once, and what is wrong with the others.

    Args:
        split_file: URL of the list; empty lines do not count.
        find: returns what a line stands for, or None.
        missing: code of the fault of a line that stands for nothing, and what was expected of it.
    """
    code, expected = missing
    chosen: dict[str, int] = {}
    faults = []
    for line, text in enumerate(read_bytes(split_file).decode("utf-8-sig", "replace").splitlines(), start=1):
        if not text.strip():
            continue
        key = find(text.strip())
        if key is None:
            faults.append(Fault(code, f"found {text.strip()!r}, expected {expected}; left out", split_file, line))
        elif key in chosen:
            message = f"found {key!r} again, first in line {chosen[key]}; expected each image once; left out"
            faults.append(Fault("duplicate_id", message, split_file, line))
        else:
            chosen[key] = line
    return list(chosen), faults

"""Read the list of a split's images: a text file with one image per line."""

from collections.abc import Callable

from yolor_ray.io.storage import read_bytes
from yolor_ray.pack.annotations.faults import Fault


def read_split_file(split_file: str, find: Callable[[str], list[str]], missing: tuple[str, str]) -> tuple[list[str], list[Fault]]:
    """Return the keys that the lines of a split file name, each once, and a fault for each other line.

    Args:
        split_file: URL of the list; empty lines are ignored.
        find: returns the keys that the text of a line may name.
        missing: code of the fault for a line without a key, and the expectation for its message.
    """
    code, expected = missing
    first_lines: dict[str, int] = {}
    faults = []
    for line, text in enumerate(read_bytes(split_file).decode("utf-8-sig", "replace").splitlines(), start=1):
        if not text.strip():
            continue
        keys = find(text.strip())
        if len(keys) > 1:
            message = f"found {text.strip()!r}, which may be {' or '.join(map(repr, keys))}; expected one; left out"
            faults.append(Fault("ambiguous_image", message, split_file, line))
        elif not keys:
            faults.append(Fault(code, f"found {text.strip()!r}, expected {expected}; left out", split_file, line))
        elif (key := keys[0]) in first_lines:
            message = f"found {key!r} again, first in line {first_lines[key]}; expected each image once; left out"
            faults.append(Fault("duplicate_id", message, split_file, line))
        else:
            first_lines[key] = line
    return list(first_lines), faults

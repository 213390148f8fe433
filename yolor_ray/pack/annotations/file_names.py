"""Compare names of files as annotation tools write them: with either slash, as absolute path, as URL, percent-encoded, in another case."""

import re
import unicodedata
from typing import NamedTuple
from urllib.parse import unquote

URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
ABSOLUTE = re.compile(r"[a-z]:[/\\]|[/\\]|\.\.[/\\]", re.IGNORECASE)
"""Begin of a path that does not lie below the images folder: of Windows, of POSIX, or above the working directory."""


class NamedPath(NamedTuple):
    """One reading of a name in an annotation file."""

    parts: tuple[str, ...]
    """Folders and file name, with the case as written."""
    absolute: bool
    """The name says where the file lay on another machine, so that its folders may differ from those of the images folder."""


def normal_form(name: str) -> str:
    """Return a name without regard to case and Unicode composition."""
    return unicodedata.normalize("NFC", name).casefold()


def path_parts(path: str) -> tuple[str, ...]:
    """Return the folders and the file name of a path, percent-decoded, without `.` and `..`."""
    parts: list[str] = []
    for part in unquote(path).replace("\\", "/").split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return tuple(parts)


def readings(name: str) -> list[NamedPath]:
    """Return the readings of a name, the likeliest first; `?` and `#` begin a query in URLs, and perhaps elsewhere."""
    without_query = re.split(r"[?#]", name)[0]
    if URL.match(name):
        return [NamedPath(path_parts(without_query), absolute=True)]
    texts = dict.fromkeys((name, name.strip(), without_query.strip()))
    paths = [NamedPath(path_parts(text), ABSOLUTE.match(text.strip()) is not None) for text in texts]
    return [path for path in paths if path.parts]


class Agreement(NamedTuple):
    """Agreement of a name with the path of a file; the greater, the better."""

    whole: bool
    """The name holds the whole path below the images folder, and nothing that contradicts the folder's own path."""
    equal: int
    """Equal parts at the end, without regard to case."""
    equal_case: int
    """Equal parts at the end, with the case as written."""
    apart: bool
    """Name and path have different folders before the equal parts."""


def agreement(name: NamedPath, file: tuple[str, ...], root: tuple[str, ...]) -> Agreement:
    """Compare a name with the path of a file below a folder at `root`."""
    equal = _equal_parts(tuple(map(normal_form, name.parts)), tuple(map(normal_form, (*root, *file))))
    whole = equal == len(name.parts) and equal >= len(file)
    return Agreement(whole, equal, _equal_parts(name.parts, (*root, *file)), apart=equal < min(len(name.parts), len(file)))


def _equal_parts(first: tuple[str, ...], second: tuple[str, ...]) -> int:
    """Return the number of equal parts at the ends of two paths."""
    count = 0
    while count < min(len(first), len(second)) and first[-1 - count] == second[-1 - count]:
        count += 1
    return count

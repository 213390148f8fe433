"""Faults of annotations and images. Codes are stable; reports and tests rely on the codes."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One fault of a dataset, its location and its consequence."""

    code: str
    """Stable snake_case name, such as `zero_area_box`."""
    message: str
    """Found value, expected value, consequence."""
    file: str
    """URL of the annotation file, or of the image where the image is at fault."""
    line: int | None = None
    """Line in the file, from 1; None for files that are not read by line."""
    pointer: str = ""
    """JSON pointer into the file, such as /annotations/17."""
    image: str = ""
    """Name of the image whose object is at fault; empty for faults of files and images."""
    box: tuple[float, float, float, float] | None = None
    """x1, y1, x2, y2 of the object as annotated, in pixels or fractions of the image; None without a readable box."""

    @property
    def location(self) -> str:
        """FILE:LINE or FILE#POINTER on one line, with unprintable characters escaped."""
        location = self.file + (f":{self.line}" if self.line else "") + (f"#{self.pointer}" if self.pointer else "")
        return "".join(character if character.isprintable() else repr(character)[1:-1] for character in location)

    def __str__(self) -> str:
        return f"{self.location}: {self.code}: {self.message}"


def count_by_code(faults: Iterable[Fault]) -> dict[str, int]:
    """Return the number of faults by code, sorted by code."""
    return dict(sorted(Counter(fault.code for fault in faults).items()))

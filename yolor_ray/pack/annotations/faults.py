"""Say what is wrong with annotations, and where. Codes are stable; reports and tests rely on them."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a data set, and what became of it."""

    code: str
    """Stable snake_case name, such as `zero_area_box`."""
    message: str
    """What was found, what was expected, what was done."""
    file: str
    """URL of the annotation file, or of the image where that is at fault."""
    line: int | None = None
    """Line in the file, from 1; None where a line says nothing."""
    pointer: str = ""
    """JSON pointer into the file, such as /annotations/17."""

    @property
    def place(self) -> str:
        """FILE:LINE or FILE#POINTER on one line, whatever the names hold."""
        where = self.file + (f":{self.line}" if self.line else "") + (f"#{self.pointer}" if self.pointer else "")
        return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in where)

    def __str__(self) -> str:
        return f"{self.place}: {self.code}: {self.message}"


def count_by_code(faults: Iterable[Fault]) -> dict[str, int]:
    """Return how often each code occurs, sorted by code."""
    return dict(sorted(Counter(fault.code for fault in faults).items()))

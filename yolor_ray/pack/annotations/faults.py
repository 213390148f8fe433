"""Faults of annotations and images. Codes are stable; reports and tests rely on the codes."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

UNREADABLE_OBJECT_CODES = frozenset(
    {
        "bad_annotation",
        "bad_class_id",
        "bad_line",
        "missing_box",
        "missing_class",
        "not_a_number",
        "not_normalised",
        "unknown_class",
        "unknown_image",
    }
)
"""Codes of objects that are on an image, but cannot be read: their image is not fully annotated."""
LOST_OBJECT_CODES = UNREADABLE_OBJECT_CODES | {
    "ambiguous_image",
    "bad_encoding",
    "bad_image",
    "bad_xml",
    "box_outside_image",
    "duplicate_id",
    "looks_like_fractions",
    "missing_image",
    "zero_area_box",
}
"""Codes of faults by which annotated objects do not reach the dataset."""
CONSEQUENCE = "not_fully_annotated"
"""Code of images that other faults exclude from tasks."""


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


def describe_faults(faults: Sequence[Fault]) -> str:
    """Return the number of faults by code, and the first fault of the most frequent code, as text."""
    counts = ", ".join(f"{code} {count}" for code, count in count_by_code(faults).items())
    causes = [fault for fault in faults if fault.code != CONSEQUENCE]
    if not causes:
        return f"{len(faults)} faults"
    commonest = Counter(fault.code for fault in causes).most_common(1)[0][0]
    return f"{len(faults)} faults: {counts}; for example {next(fault for fault in causes if fault.code == commonest)}"


def count_by_code(faults: Iterable[Fault]) -> dict[str, int]:
    """Return the number of faults by code, sorted by code."""
    return dict(sorted(Counter(fault.code for fault in faults).items()))

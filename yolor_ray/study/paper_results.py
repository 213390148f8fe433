"""Published results of the paper, for orientation beside the results of a study.

Source: YOLOR, arXiv 2105.04206, tables 1 to 7: COCO val2017 at 640 px, one training run per row, no repeats. Accuracies are in
points, 0 to 100, in the order of `results.METRICS`.
"""

from dataclasses import dataclass

SOURCE = "arXiv 2105.04206, tables 1 to 7: COCO val2017, 640 px, no repeats"


@dataclass(frozen=True)
class PaperRow:
    """One row of the paper's tables."""

    tables: tuple[int, ...]
    """Numbers of the tables that contain the row."""
    points: tuple[float, float, float, float, float, float]
    """AP, AP50, AP75, APS, APM, APL."""


@dataclass(frozen=True)
class Overhead:
    """Cost of implicit knowledge (+iFA and ×iPR) in a network: table 7."""

    parameters: int
    implicit_parameters: int
    """With implicit knowledge."""
    mflops: float
    implicit_mflops: float


BASELINE_ROW = "baseline"
"""YOLOv4-CSP-fast, the reference of every row of `ROWS`."""
ROWS = {
    BASELINE_ROW: PaperRow((1, 2, 4, 5, 6), (47.8, 66.3, 52.1, 30.1, 52.5, 62.0)),
    "+iFA": PaperRow((1, 4, 6), (47.9, 66.6, 52.3, 30.6, 53.1, 62.6)),
    "×iFA": PaperRow((4,), (47.4, 65.8, 51.6, 29.6, 52.2, 62.1)),
    "⊕iFA": PaperRow((4,), (47.8, 66.5, 52.2, 30.3, 52.9, 62.3)),
    "+iPR": PaperRow((2, 4), (47.8, 66.5, 52.1, 30.3, 53.3, 61.5)),
    "×iPR": PaperRow((4,), (48.0, 66.7, 52.3, 29.8, 53.4, 61.8)),
    "×iFA*": PaperRow((5,), (47.9, 66.6, 52.0, 30.5, 52.6, 62.3)),
    "×iPR*": PaperRow((5,), (48.1, 66.5, 52.1, 30.1, 53.3, 61.9)),
    "+wiFA": PaperRow((6,), (47.8, 66.4, 52.0, 30.8, 52.8, 61.9)),
    "+icFA": PaperRow((6,), (48.0, 66.7, 52.6, 30.3, 53.2, 62.5)),
}
"""Feature alignment (FA) or prediction refinement (PR) alone, by operator and model."""
JOINT_TASK_ROWS = {
    "YOLOv4-CSP, detection only": PaperRow((3,), (48.0, 66.8, 52.3, 30.0, 53.0, 62.7)),
    "JDC": PaperRow((3,), (47.7, 66.8, 51.9, 30.8, 52.4, 61.6)),
    "JDC + implicit": PaperRow((3,), (48.1, 67.1, 52.2, 31.1, 52.7, 62.3)),
    "JDE": PaperRow((3,), (48.1, 66.7, 52.4, 30.7, 53.2, 61.9)),
    "JDE + implicit": PaperRow((3,), (48.3, 66.8, 52.6, 30.7, 53.4, 63.0)),
}
"""Detection learned jointly with multi-label classification (JDC) or with feature embedding (JDE)."""
OVERHEADS = {
    "YOLOv4-CSP-fast": Overhead(52_908_989, 52_911_546, 117_517.3, 117_519.4),
    "YOLOv4-P6-light": Overhead(37_262_204, 37_265_016, 326_256.2, 326_264.7),
}


def paper_difference(row: str) -> float:
    """Return the AP of a row of `ROWS` minus that of the paper's baseline, in points."""
    # Rounded as published: 47.9 - 47.8 is not 0.1 in binary.
    return round(ROWS[row].points[0] - ROWS[BASELINE_ROW].points[0], 1)

"""Fixture: trainings that write blank pictures, because drawing takes most of the time of a tiny run.

Tests in `tests/report` and `tests/evaluate` draw all pictures, and other trainings of the tests draw theirs.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from markupsafe import Markup
from PIL import Image


@contextmanager
def blank_pictures() -> Iterator[None]:
    """Write blank pictures and charts of runs and evaluations."""
    from yolor_ray.evaluate import examples_plot
    from yolor_ray.evaluate.page import charts
    from yolor_ray.report import curves

    blank = io.BytesIO()
    Image.new("RGB", (1, 1)).save(blank, "PNG")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "curves_png", lambda rows: blank.getvalue())
        patch.setattr(examples_plot, "predictions_png", lambda examples, classes: blank.getvalue())
        patch.setattr(charts, "svg_text", lambda figure: Markup("<svg></svg>"))
        yield


@pytest.fixture
def undrawn() -> Iterator[None]:
    """Write blank pictures during a test."""
    with blank_pictures():
        yield

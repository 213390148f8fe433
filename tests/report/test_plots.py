"""Training curves, by the colours of their pixels."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from yolor_ray.report import curves
from yolor_ray.report.curves import curves_png
from yolor_ray.report.plots import COLOURS, colour


def _pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def _shows(png, colour_name, minimum=50):
    """Return True if at least `minimum` pixels are nearly of a colour, which is given as #rrggbb."""
    rgb = [int(colour_name[i : i + 2], 16) for i in (1, 3, 5)]
    return (np.abs(_pixels(png) - rgb).max(axis=2) < 30).sum() >= minimum


def _row(epoch, **metrics):
    return {"epoch": epoch, "lr": 0.01, "loss": 0.3, "box": 0.1, "objectness": 0.1, "cls": 0.1, "images_per_s": 9.0, **metrics}


def test_colours_repeat_after_the_last():
    assert colour(len(COLOURS) + 1) == COLOURS[1]


def test_curves_show_accuracy_where_it_was_measured():
    rows = [_row(epoch) for epoch in range(4)]
    validated = [_row(epoch, AP=0.2 * epoch, AP50=0.3 * epoch) for epoch in range(4)]
    assert (_pixels(curves_png(rows)) != _pixels(curves_png(validated))).any()


@pytest.mark.parametrize("rows", [[], [_row(0)], [_row(0, AP=0.0, AP50=0.0)], [_row(i) for i in range(300)]])
def test_curves_are_drawn_for_any_number_of_epochs(rows):
    assert _pixels(curves_png(rows)).shape[1] > 1000


def test_curves_show_every_task_of_the_run():
    losses = {name: 0.2 for name in ("classify", "embed", "segment", "pose")}
    accuracies = {name: 0.3 for name in ("AP50", "classify/mAP", "embed/mAP", "segment/AP", "pose/AP")}
    png = curves_png([_row(epoch, AP=0.1 * epoch, **losses, **accuracies) for epoch in range(4)])
    assert all(_shows(png, name) for name in COLOURS[:8])
    assert not _shows(curves_png([_row(epoch, AP=0.1 * epoch) for epoch in range(4)]), COLOURS[5])


def test_curves_leave_out_unknown_measures():
    assert _shows(curves_png([_row(0, AP=-1.0, AP50=-1.0), _row(1, AP=0.5, AP50=0.7)]), COLOURS[0])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_curves_of_a_diverged_run_show_the_finite_values(value):
    losses = dict.fromkeys(("loss", "box", "objectness", "cls"), value)
    assert _pixels(curves_png([_row(0, **losses)])).shape[1] > 1000
    assert _shows(curves_png([_row(0), _row(1, **losses), _row(2)]), COLOURS[0])


def _figure(rows, monkeypatch):
    monkeypatch.setattr(curves, "png_bytes", lambda figure: figure)
    figure = curves_png(rows)
    figure.canvas.draw()
    return figure


def test_legends_of_curves_stand_beside_the_axes_and_inside_of_the_picture(monkeypatch):
    names = [name for panel in curves.PANELS.values() for name in panel]
    figure = _figure([_row(epoch, **dict.fromkeys(names, 0.1 * epoch + 0.1)) for epoch in range(4)], monkeypatch)
    legends = [(axes.get_window_extent(), axes.get_legend().get_window_extent()) for axes in figure.axes if axes.get_legend()]
    assert len(legends) == 2
    for plot, legend in legends:
        assert legend.x0 > plot.x1 and legend.x1 <= figure.bbox.x1 and legend.y0 >= figure.bbox.y0
        assert plot.width > 0.3 * figure.bbox.width


@pytest.mark.parametrize("accuracies", [(0.1, 0.12, 0.15), (0.0, 0.0), (-1.0, 0.8, 0.9)])
def test_the_axis_of_accuracy_fits_the_measured_values(accuracies, monkeypatch):
    axes = _figure([_row(epoch, AP=value) for epoch, value in enumerate(accuracies)], monkeypatch).axes[1]
    measured = [value for value in accuracies if value >= 0]
    low, high = axes.get_ylim()
    assert min(measured) - 0.02 < low < min(measured) and max(measured) < high < max(measured) + 0.02

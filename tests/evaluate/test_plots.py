import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from yolor_ray.data.records import objects_from_boxes
from yolor_ray.evaluate.plots import COLOURS, Picture, colour, curves_png, precision_recall_png, predictions_png


def _pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def _shows(png, colour_name, least=50):
    """Tell whether so many pixels are nearly of a colour given as #rrggbb."""
    rgb = [int(colour_name[i : i + 2], 16) for i in (1, 3, 5)]
    return (np.abs(_pixels(png) - rgb).max(axis=2) < 30).sum() >= least


def _picture(width=120, height=80, labels=(0,), truths=1):
    boxes = np.array([[10 + 40 * i, 20, 40 + 40 * i, 60] for i in range(len(labels))], np.float64).reshape(-1, 4)
    truth = objects_from_boxes(boxes[:truths], np.zeros(min(truths, len(boxes))))
    return Picture(np.full((height, width, 3), 90, np.uint8), boxes, np.full(len(labels), 0.8), np.array(labels, int), truth)


def _row(epoch, **more):
    return {"epoch": epoch, "lr": 0.01, "loss": 0.3, "box": 0.1, "objectness": 0.1, "classes": 0.1, "images_per_s": 9.0, **more}


def test_detections_have_the_colours_of_their_classes():
    png = predictions_png([_picture(labels=(0, 1))], ("cat", "dog", "yak"))
    assert _shows(png, COLOURS[0]) and _shows(png, COLOURS[1])
    assert not _shows(png, COLOURS[2])


def test_annotations_are_drawn_in_white_over_the_image():
    with_truth, without = (predictions_png([_picture(labels=(0,), truths=n)], ("cat",)) for n in (1, 0))
    white = [(_pixels(png)[60:300] > 235).all(axis=2).sum() for png in (with_truth, without)]
    assert white[0] > white[1] + 100


@pytest.mark.parametrize("count", [0, 1, 2, 9, 12])
def test_any_number_of_pictures_makes_a_grid(count):
    height, width = _pixels(predictions_png([_picture()] * count, ("cat",))).shape[:2]
    assert width >= 400 * min(count, 3)
    assert height >= 250 * -(-count // 3)


def test_pictures_without_objects_and_of_other_shapes_are_drawn():
    pictures = [_picture(labels=(), truths=0), _picture(width=30, height=90), _picture(labels=(0,) * 60)]
    assert _shows(predictions_png(pictures, ("cat",)), COLOURS[0])


def test_colours_repeat_after_the_last():
    assert colour(len(COLOURS) + 1) == COLOURS[1]


def test_curves_show_accuracy_where_it_was_measured():
    unmeasured = [_row(epoch) for epoch in range(4)]
    measured = [_row(epoch, AP=0.2 * epoch, AP50=0.3 * epoch) for epoch in range(4)]
    without, with_accuracy = curves_png(unmeasured), curves_png(measured)
    assert (_pixels(without) != _pixels(with_accuracy)).any()


@pytest.mark.parametrize("rows", [[], [_row(0)], [_row(0, AP=0.0, AP50=0.0)], [_row(i) for i in range(300)]])
def test_curves_are_drawn_for_any_number_of_epochs(rows):
    assert _pixels(curves_png(rows)).shape[1] > 1000


def test_curves_survive_a_measure_that_is_unknown():
    assert _shows(curves_png([_row(0, AP=-1.0, AP50=-1.0), _row(1, AP=0.5, AP50=0.7)]), COLOURS[0])


def test_a_class_without_objects_has_no_precision_curve():
    precision = np.full((101, 2), 0.5)
    precision[:, 1] = np.nan
    png = precision_recall_png(precision, precision, ("cat", "dog"))
    assert _shows(png, COLOURS[0]) and not _shows(png, COLOURS[1])


def test_precision_of_no_or_many_classes_is_drawn():
    for values, classes in ((np.full((101, 1), np.nan), 1), (np.tile(np.linspace(1, 0, 101)[:, None], 80), 80)):
        assert _pixels(precision_recall_png(values, values, [f"class {k}" for k in range(classes)])).shape[0] > 400


def test_threads_draw_the_same_pictures_at_the_same_time():
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda _: predictions_png([_picture()], ("cat",)), range(8)))
    assert len(set(drawn)) == 1

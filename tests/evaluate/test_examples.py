import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as run_length

from yolor_ray.data.shards.records import objects_from_boxes
from yolor_ray.evaluate.examples import ExampleImage
from yolor_ray.evaluate.examples_plot import predictions_png
from yolor_ray.inference.postprocess import ImageDetections
from yolor_ray.report.plots import COLOURS


def _pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def _shows(png, hex_colour, min_pixels=50):
    """Return True if at least `min_pixels` pixels nearly have a colour, given as #rrggbb."""
    rgb = [int(hex_colour[i : i + 2], 16) for i in (1, 3, 5)]
    return (np.abs(_pixels(png) - rgb).max(axis=2) < 30).sum() >= min_pixels


def _example(width=120, height=80, labels=(0,), truths=1):
    boxes = np.array([[10 + 40 * i, 20, 40 + 40 * i, 60] for i in range(len(labels))], np.float64).reshape(-1, 4)
    truth = objects_from_boxes(boxes[:truths], np.zeros(min(truths, len(boxes))))
    return ExampleImage(
        np.full((height, width, 3), 90, np.uint8), ImageDetections(boxes, np.full(len(labels), 0.8), np.array(labels, int)), truth
    )


def test_detections_have_the_colours_of_their_classes():
    png = predictions_png([_example(labels=(0, 1))], ("cat", "dog", "yak"))
    assert _shows(png, COLOURS[0]) and _shows(png, COLOURS[1])
    assert not _shows(png, COLOURS[2])


def test_annotations_are_drawn_in_white_over_the_image():
    with_truth, without = (predictions_png([_example(labels=(0,), truths=n)], ("cat",)) for n in (1, 0))
    white = [(_pixels(png)[60:300] > 235).all(axis=2).sum() for png in (with_truth, without)]
    assert white[0] > white[1] + 100


@pytest.mark.parametrize("count", [0, 1, 2, 9, 12])
def test_any_number_of_examples_makes_a_grid(count):
    height, width = _pixels(predictions_png([_example()] * count, ("cat",))).shape[:2]
    assert width >= 400 * min(count, 3)
    assert height >= 250 * -(-count // 3)


def test_examples_without_objects_and_of_other_shapes_are_drawn():
    examples = [_example(labels=(), truths=0), _example(width=30, height=90), _example(labels=(0,) * 60)]
    assert _shows(predictions_png(examples, ("cat",)), COLOURS[0])


def _with_outputs(example, **outputs):
    return replace(example, detections=replace(example.detections, **outputs))


def test_masks_tint_their_pixels_alone():
    inside = np.zeros((80, 120), np.uint8, order="F")
    inside[25:55, 15:35] = 1
    example = _example(labels=(0,), truths=0)
    with_mask = _with_outputs(example, masks=(run_length.encode(inside)["counts"],))
    plain, masked = (_pixels(predictions_png([drawn], ("cat",))) for drawn in (example, with_mask))
    changed = np.argwhere((plain != masked).any(axis=2))
    # 120 px of the image are 4.6 inches of 110 pixels each, beside a gap of 0.08.
    scale, gap = 4.6 * 110 / 120, 0.08 * 110
    assert np.abs(changed.min(axis=0) - [gap + 25 * scale, gap + 15 * scale]).max() < 4
    assert np.abs(changed.max(axis=0) - [gap + 55 * scale, gap + 35 * scale]).max() < 4
    tint = masked[round(gap + 50 * scale), round(gap + 20 * scale)]
    assert tint.tolist() == pytest.approx([0.55 * 90 + 0.45 * int(COLOURS[0][i : i + 2], 16) for i in (1, 3, 5)], abs=2)


def test_likely_keypoints_are_drawn():
    example = _example(labels=(0,), truths=0)
    far = np.array([[[100.0, 70, 0.9], [100, 20, 0.1]]])
    plain, dotted = (_pixels(predictions_png([drawn], ("cat",))) for drawn in (example, _with_outputs(example, keypoints=far)))
    changed = np.argwhere((plain != dotted).any(axis=2)).mean(axis=0)
    assert changed == pytest.approx(0.08 * 110 + np.array([70, 100]) * 4.6 * 110 / 120, abs=3)


def test_labelled_keypoints_of_the_annotations_are_drawn():
    keypoints = np.array([[[100, 70, 2], [100, 20, 0], [90, 30, -1]]], np.float32)
    example = _example(labels=(0,), truths=1)
    annotated = replace(example, truth=replace(example.truth, keypoints=keypoints))
    plain, dotted = (_pixels(predictions_png([drawn], ("cat",))) for drawn in (example, annotated))
    changed = np.argwhere((plain != dotted).any(axis=2)).mean(axis=0)
    assert changed == pytest.approx(0.08 * 110 + np.array([70, 100]) * 4.6 * 110 / 120, abs=3)


def test_a_caption_is_drawn_on_the_image():
    plain, named = (_pixels(predictions_png([replace(_example(), caption=text)], ("cat",))) for text in ("", "indoors 0.93"))
    rows = np.argwhere((plain != named).any(axis=2))[:, 0]
    assert len(rows) > 300 and rows.min() > 0.8 * 80 * 4.6 * 110 / 120


def test_threads_can_draw_at_the_same_time():
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda _: predictions_png([_example()], ("cat",)), range(8)))
    assert len(set(drawn)) == 1


@pytest.mark.parametrize(
    ("width", "height", "count"), [(10, 1000, 9), (1000, 10, 9), (1, 1, 9), (1, 3000, 9), (3000, 1, 9), (3000, 2000, 1), (10, 1000, 40)]
)
def test_the_picture_has_no_side_over_8192_pixels(width, height, count):
    drawn = _pixels(predictions_png([_example(width, height)] * count, ("cat",)))
    assert max(drawn.shape) <= 8192
    assert min(drawn.shape[:2]) >= 150


def test_one_image_of_extreme_shape_changes_no_other():
    usual = _pixels(predictions_png([_example()] * 9, ("cat",))).shape
    assert _pixels(predictions_png([_example()] * 8 + [_example(4000, 3)], ("cat",))).shape == usual


def test_a_tall_image_is_drawn_whole_and_in_its_shape():
    image = np.full((1000, 10, 3), 90, np.uint8)
    image[:20] = image[-20:] = (255, 0, 0)
    pixels = _pixels(predictions_png([replace(_example(10, 1000, labels=(), truths=0), image=image)], ("cat",)))[:-46]
    rows, columns = np.nonzero((np.abs(pixels - (255, 0, 0)).max(axis=2) < 60) | (np.abs(pixels - 90).max(axis=2) < 20))
    assert np.ptp(rows) + 1 == pytest.approx(1.6 * 4.6 * 110, abs=3)
    assert np.ptp(columns) + 1 == pytest.approx(np.ptp(rows) / 100, abs=3)


def test_a_huge_image_and_its_masks_are_reduced_and_stay_in_place():
    inside = np.zeros((2400, 3600), np.uint8, order="F")
    inside[600:1200, 900:1800] = 1
    example = ExampleImage(np.full((2400, 3600, 3), 90, np.uint8), _example().detections, _example(labels=(), truths=0).truth)
    plain, masked = (
        _pixels(predictions_png([_with_outputs(example, masks=masks)], ("cat",)))
        for masks in (None, (run_length.encode(inside)["counts"],))
    )
    changed = np.argwhere((plain != masked).any(axis=2))
    scale, gap = 4.6 * 110 / 3600, 0.08 * 110
    assert np.abs(changed.min(axis=0) - [gap + 600 * scale, gap + 900 * scale]).max() < 4
    assert np.abs(changed.max(axis=0) - [gap + 1200 * scale, gap + 1800 * scale]).max() < 4

"""Draw example images with their detections and annotations as one PNG.

Boxes, masks and keypoints have the colours of their classes; annotations are white.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from yolor_ray.evaluate.examples import ExampleImage
from yolor_ray.inference.drawing import draw_box, draw_detections, draw_image, draw_points
from yolor_ray.report.plots import COLOURS, INK, colour, new_figure, png_bytes

CELL, GAP, FOOT = 4.6, 0.08, 0.42
"""Width of a cell, gap between cells, and height of the legend, inches."""
CELL_ASPECTS = 0.3, 1.6
"""Smallest and largest height of a cell relative to its width; images of other shapes leave some of their cell blank."""
MAX_HEIGHT = 70.0
"""Largest height of the picture, inches of 110 pixels; cells of a taller one are lower."""


def predictions_png(examples: Sequence[ExampleImage], classes: Sequence[str], columns: int = 3) -> bytes:
    """Draw a grid of images: detections in the colours of their classes, annotations dashed in white."""
    columns = max(1, min(columns, len(examples)))
    rows = max(1, -(-len(examples) // columns))
    aspects = [example.image.shape[0] / example.image.shape[1] for example in examples]
    aspect = float(np.clip(np.median(aspects or [0]), *CELL_ASPECTS))
    cell_height = min(CELL * aspect, (MAX_HEIGHT - FOOT) / rows - GAP)
    width, height = columns * (CELL + GAP) + GAP, rows * (cell_height + GAP) + GAP + FOOT
    figure = new_figure(width, height, layout=None)
    for index, example in enumerate(examples):
        row, column = divmod(index, columns)
        left, top = GAP + column * (CELL + GAP), GAP + row * (cell_height + GAP)
        axes = figure.add_axes((left / width, 1 - (top + cell_height) / height, CELL / width, cell_height / height))
        image_height, image_width = example.image.shape[:2]
        _draw_example(axes, example, classes, 72 * min(CELL / image_width, cell_height / image_height))
    labels = sorted({int(label) for example in examples for label in (*example.detections.labels, *example.truth.labels)})
    handles = [Line2D([], [], color=colour(label), linewidth=4, label=classes[label]) for label in labels[: len(COLOURS)]]
    handles.append(Line2D([], [], color="#8b949e", linewidth=1.6, linestyle=(0, (3, 2)), label="annotated"))
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, labelcolor=INK, fontsize=11)
    return png_bytes(figure)


def _draw_example(axes: Axes, example: ExampleImage, classes: Sequence[str], scale: float) -> None:
    """Draw one image; `scale` is the size of an image pixel in typographic points."""
    draw_image(axes, example.image, example.detections, scale)
    _draw_truth(axes, example)
    draw_detections(axes, example.detections, classes, 1 / scale)
    if example.caption:
        text = axes.text(0.01, 0.015, example.caption, transform=axes.transAxes, fontsize=7.5, color="white", zorder=6, clip_on=True)
        text.set_bbox({"facecolor": "black", "edgecolor": "none", "pad": 1.5, "alpha": 0.65})


def _draw_truth(axes: Axes, example: ExampleImage) -> None:
    for box in example.truth.boxes_xyxy:
        outline = draw_box(axes, box, "white", 0.9)
        outline.set_linestyle((0, (4, 3)))
        outline.set_zorder(3)
    if example.truth.keypoints is not None:
        draw_points(axes, example.truth.keypoints[example.truth.keypoints[..., 2] > 0], "white", 5.0)

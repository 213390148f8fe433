"""Draw example images with their detections and annotations as one PNG.

Boxes, masks and keypoints have the colours of their classes; annotations are white.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Stroke, withStroke
from PIL import Image

from yolor_ray.data.rle import decode_mask
from yolor_ray.evaluate.examples import ExampleImage
from yolor_ray.inference.postprocess import ImageDetections
from yolor_ray.report.plots import COLOURS, INK, colour, new_figure, png_bytes

MASK_OPACITY = 0.45
MIN_KEYPOINT_CONFIDENCE = 0.5
"""Keypoints of lower confidence are not drawn."""
MAX_NAMED = 40
"""Most objects of an image whose names are drawn."""
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
    height, width = example.image.shape[:2]
    # A pixel of the picture is 72 / 110 points; more pixels of the image than that cost time alone.
    step = max(1, int(72 / 110 / scale))
    axes.imshow(_with_masks(example.image, example.detections, step), interpolation="antialiased", extent=(0, width, height, 0))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    _draw_truth(axes, example)
    _draw_detections(axes, example.detections, classes, 1 / scale)
    if example.caption:
        text = axes.text(0.01, 0.015, example.caption, transform=axes.transAxes, fontsize=7.5, color="white", zorder=6, clip_on=True)
        text.set_bbox({"facecolor": "black", "edgecolor": "none", "pad": 1.5, "alpha": 0.65})


def _draw_truth(axes: Axes, example: ExampleImage) -> None:
    for box in example.truth.boxes_xyxy:
        outline = _draw_box(axes, box, "white", 0.9)
        outline.set_linestyle((0, (4, 3)))
        outline.set_zorder(3)
    if example.truth.keypoints is not None:
        _draw_points(axes, example.truth.keypoints[example.truth.keypoints[..., 2] > 0], "white", 5)


def _draw_detections(axes: Axes, detections: ImageDetections, classes: Sequence[str], point_px: float) -> None:
    """Draw boxes, keypoints and names, the most confident on top; `point_px` is the size of a typographic point in image pixels."""
    # Names on a crowd of small boxes would hide the image; colours and the legend suffice there.
    widths = detections.boxes_xyxy[:, 2] - detections.boxes_xyxy[:, 0]
    named = 0 < len(widths) <= MAX_NAMED and np.median(widths) >= 22 * point_px
    for index in np.argsort(detections.confidences, kind="stable"):
        label, box = int(detections.labels[index]), detections.boxes_xyxy[index]
        _draw_box(axes, box, colour(label), 1.7)
        if detections.keypoints is not None:
            keypoints = detections.keypoints[index]
            _draw_points(axes, keypoints[keypoints[:, 2] >= MIN_KEYPOINT_CONFIDENCE], colour(label), 16)
        if named:
            _draw_name(axes, box, f"{classes[label]} {detections.confidences[index]:.2f}", colour(label), point_px)


def _with_masks(image: np.ndarray, detections: ImageDetections, step: int) -> np.ndarray:
    """Return the image, reduced by a whole step, with each mask laid over it in the colour of its class, the most confident on top."""
    height, width = image.shape[:2]
    mixed = np.array(Image.fromarray(image).reduce(step)) if step > 1 else image.copy()
    for mask, label in zip(reversed(detections.masks or ()), detections.labels[::-1], strict=bool(detections.masks)):
        inside = decode_mask(mask, width, height)[::step, ::step]
        tint = 255 * np.array(to_rgb(colour(int(label))))
        mixed[inside] = (1 - MASK_OPACITY) * mixed[inside] + MASK_OPACITY * tint
    return mixed


def _draw_points(axes: Axes, points: np.ndarray, face: str, size: float) -> None:
    axes.scatter(points[:, 0], points[:, 1], s=size, color=face, edgecolors="#00000099", linewidths=0.5, zorder=4)


def _draw_box(axes: Axes, box: np.ndarray, edge: str, width: float) -> Rectangle:
    x1, y1, x2, y2 = box
    outline = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=edge, linewidth=width)
    outline.set_path_effects([withStroke(linewidth=width + 0.9, foreground="#00000066")])
    axes.add_patch(outline)
    return outline


def _draw_name(axes: Axes, box: np.ndarray, text: str, edge: str, point_px: float) -> None:
    above = box[1] >= 10 * point_px
    x, y = max(box[0], 0) + point_px, max(box[1], 0) + (-1.5 if above else 1.5) * point_px
    label = axes.text(x, y, text, fontsize=6.5, color="white", va="bottom" if above else "top", clip_on=True, zorder=5)
    label.set_bbox({"facecolor": edge, "edgecolor": "none", "pad": 0.8, "alpha": 0.85})
    label.set_path_effects([Stroke(linewidth=1.2, foreground="#00000080"), withStroke(linewidth=0)])

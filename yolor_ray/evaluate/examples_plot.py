"""Draw images with what was found in them, and what is annotated, as one PNG.

Boxes, masks and joints have the colours of their classes; annotations are white.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Stroke, withStroke

from yolor_ray.evaluate.examples import Picture
from yolor_ray.inference.postprocess import ImageDetections, mask_pixels
from yolor_ray.report.plots import COLOURS, INK, colour, new_figure, png_bytes

MASK_OPACITY = 0.45
LEAST_VISIBLE = 0.5
"""Joints of less confidence are not drawn."""


def predictions_png(pictures: Sequence[Picture], classes: Sequence[str], columns: int = 3) -> bytes:
    """Draw a grid of images: detections in the colours of their classes, annotations dashed in white."""
    columns = max(1, min(columns, len(pictures)))
    rows = -(-len(pictures) // columns)
    aspect = float(np.median([p.image.shape[0] / p.image.shape[1] for p in pictures])) if pictures else 0.1
    cell, gap, foot = 4.6, 0.08, 0.42
    width, height = columns * (cell + gap) + gap, max(rows, 1) * (cell * aspect + gap) + gap + foot
    figure = new_figure(width, height, layout=None)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        left, top = gap + column * (cell + gap), gap + row * (cell * aspect + gap)
        axes = figure.add_axes((left / width, 1 - (top + cell * aspect) / height, cell / width, cell * aspect / height))
        _draw(axes, picture, classes, cell * 72)
    seen = sorted({int(label) for picture in pictures for label in (*picture.found.labels, *picture.truth.labels)})
    handles = [Line2D([], [], color=colour(label), linewidth=4, label=classes[label]) for label in seen[: len(COLOURS)]]
    handles.append(Line2D([], [], color="#8b949e", linewidth=1.6, linestyle=(0, (3, 2)), label="annotated"))
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, labelcolor=INK, fontsize=11)
    return png_bytes(figure)


def _draw(axes: Axes, picture: Picture, classes: Sequence[str], width_pt: float) -> None:
    height, width = picture.image.shape[:2]
    axes.imshow(_with_masks(picture.image, picture.found), interpolation="antialiased")
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    _draw_truth(axes, picture)
    found, point = picture.found, width / width_pt
    # Names on a crowd of small boxes hide the picture: colours and the legend tell enough there.
    sides = found.boxes_xyxy[:, 2] - found.boxes_xyxy[:, 0]
    named = 0 < len(sides) <= 40 and np.median(sides) >= 22 * point
    for index in np.argsort(found.confidences, kind="stable"):
        label = int(found.labels[index])
        _box(axes, found.boxes_xyxy[index], colour(label), 1.7)
        if found.keypoints is not None:
            _dots(axes, found.keypoints[index][found.keypoints[index, :, 2] >= LEAST_VISIBLE], colour(label), 16)
        if named:
            _name(axes, found.boxes_xyxy[index], f"{classes[label]} {found.confidences[index]:.2f}", colour(label), point)
    if picture.caption:
        text = axes.text(0.01, 0.015, picture.caption, transform=axes.transAxes, fontsize=7.5, color="white", zorder=6, clip_on=True)
        text.set_bbox({"facecolor": "black", "edgecolor": "none", "pad": 1.5, "alpha": 0.65})


def _draw_truth(axes: Axes, picture: Picture) -> None:
    for box in picture.truth.boxes_xyxy:
        outline = _box(axes, box, "white", 0.9)
        outline.set_linestyle((0, (4, 3)))
        outline.set_zorder(3)
    if picture.truth.keypoints is not None:
        _dots(axes, picture.truth.keypoints[picture.truth.keypoints[..., 2] > 0], "white", 5)


def _with_masks(image: np.ndarray, found: ImageDetections) -> np.ndarray:
    """Return the image with each mask laid over it in the colour of its class, the most confident on top."""
    if not found.masks:
        return image
    mixed = image.copy()
    for mask, label in zip(reversed(found.masks), found.labels[::-1], strict=True):
        inside = mask_pixels(mask, *image.shape[:2])
        tint = 255 * np.array(to_rgb(colour(int(label))))
        mixed[inside] = (1 - MASK_OPACITY) * image[inside] + MASK_OPACITY * tint
    return mixed


def _dots(axes: Axes, points: np.ndarray, face: str, size: float) -> None:
    axes.scatter(points[:, 0], points[:, 1], s=size, color=face, edgecolors="#00000099", linewidths=0.5, zorder=4)


def _box(axes: Axes, box: np.ndarray, edge: str, width: float) -> Rectangle:
    x1, y1, x2, y2 = box
    outline = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=edge, linewidth=width)
    outline.set_path_effects([withStroke(linewidth=width + 0.9, foreground="#00000066")])
    axes.add_patch(outline)
    return outline


def _name(axes: Axes, box: np.ndarray, text: str, edge: str, point: float) -> None:
    above = box[1] >= 10 * point
    x, y = max(box[0], 0) + point, max(box[1], 0) + (-1.5 if above else 1.5) * point
    label = axes.text(x, y, text, fontsize=6.5, color="white", va="bottom" if above else "top", clip_on=True, zorder=5)
    label.set_bbox({"facecolor": edge, "edgecolor": "none", "pad": 0.8, "alpha": 0.85})
    label.set_path_effects([Stroke(linewidth=1.2, foreground="#00000080"), withStroke(linewidth=0)])

"""Draw detections on images: boxes, masks, keypoints and names, in the colours of their classes."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Stroke, withStroke
from PIL import Image

from yolor_ray.data.rle import decode_mask
from yolor_ray.inference.postprocess import ImageDetections
from yolor_ray.report.plots import colour

MASK_OPACITY = 0.45
MIN_KEYPOINT_CONFIDENCE = 0.5
"""Keypoints of lower confidence are not drawn."""
MAX_NAMED = 40
"""Most objects of an image whose names are drawn."""


def draw_image(axes: Axes, image: np.ndarray, detections: ImageDetections, scale: float) -> None:
    """Draw an image, (H, W, 3) uint8 RGB, with the masks of its detections; `scale` is the size of an image pixel in typographic points."""
    height, width = image.shape[:2]
    # A pixel of the picture is 72 / 110 points; more pixels of the image than that cost time alone.
    step = max(1, int(72 / 110 / scale))
    axes.imshow(_with_masks(image, detections, step), interpolation="antialiased", extent=(0, width, height, 0))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")


def draw_detections(axes: Axes, detections: ImageDetections, classes: Sequence[str], point_px: float) -> None:
    """Draw boxes, keypoints and names, the most confident on top; `point_px` is the size of a typographic point in image pixels."""
    # Names on a crowd of small boxes would hide the image; colours and the legend suffice there.
    widths = detections.boxes_xyxy[:, 2] - detections.boxes_xyxy[:, 0]
    named = 0 < len(widths) <= MAX_NAMED and np.median(widths) >= 22 * point_px
    for index in np.argsort(detections.confidences, kind="stable"):
        label, box = int(detections.labels[index]), detections.boxes_xyxy[index]
        draw_box(axes, box, colour(label), 1.7)
        if detections.keypoints is not None:
            keypoints = detections.keypoints[index]
            draw_points(axes, keypoints[keypoints[:, 2] >= MIN_KEYPOINT_CONFIDENCE], colour(label), 16.0)
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


def draw_points(axes: Axes, points: np.ndarray, face: str, size: float) -> None:
    """Draw points (N, 2 or more), x and y in pixels of the image, as dots."""
    axes.scatter(points[:, 0], points[:, 1], s=size, color=face, edgecolors="#00000099", linewidths=0.5, zorder=4)


def draw_box(axes: Axes, box: np.ndarray, edge: str, width: float) -> Rectangle:
    """Draw a box, x1, y1, x2, y2 in pixels of the image, with a dark rim; `width` of the line is in typographic points."""
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

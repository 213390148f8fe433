"""Draw the most interesting images with their detections, as PNG files.

An image is interesting for its detections with a confidence just over the threshold: there the network is least sure, and a person who
looks at the image learns most.
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

import cv2
import numpy as np
from matplotlib.lines import Line2D

from yolor_ray.config.serve import Confidence
from yolor_ray.data.images.decode import decode
from yolor_ray.errors import DataError
from yolor_ray.inference.detect import least_confidences
from yolor_ray.inference.drawing import draw_detections, draw_image
from yolor_ray.inference.postprocess import ImageDetections
from yolor_ray.io.storage import join, read_bytes
from yolor_ray.model.weights import WeightsInfo
from yolor_ray.predict.output import PartResult
from yolor_ray.predict.part_file import detections_of, from_parquet
from yolor_ray.predict.sources import Part
from yolor_ray.report.plots import COLOURS, INK, colour, new_figure, png_bytes

PICTURES_DIR = "drawn"
NEAR = 0.2
"""A confidence less than this over the lowest one of its class makes a detection doubtful."""
LONG_SIDE_PX = 640, 1600
"""Least and greatest long side of a picture."""
DPI, FOOT = 110, 0.42
"""Pixels per inch of a picture, and height of its legend in inches."""


def draw_interesting(
    output: str, results: Sequence[PartResult], parts: Sequence[Part], info: WeightsInfo, *, count: int, confidence: Confidence
) -> dict[str, bytes]:
    """Return PNG files by name: the images with the most doubtful detections first, then those with the most detections.

    Args:
        output: URL of the Parquet files.
        results: results of the parts.
        parts: images of the parts.
        info: weights of the predictions.
        count: most pictures.
        confidence: lowest confidence of the predictions.
    """
    names = {result.index: result.name for result in results}
    files = {}
    least = np.broadcast_to(np.asarray(least_confidences(confidence, info)), len(info.classes))
    least_by_class = dict(zip(info.classes, least.tolist(), strict=True))
    for rank, (index, row) in enumerate(_most_interesting(output, results, count, least_by_class), start=1):
        found = from_parquet(read_bytes(join(output, names[index])))[row]
        image = next(parts[index].read({found["name"]}))
        if image.fault:
            raise DataError(f"{image.fault}; the image was there when it was predicted")
        pixels = decode(image.data)
        if pixels.shape[:2] != (found["height"], found["width"]):
            pixels = cv2.resize(pixels, (found["width"], found["height"]))
        name = f"{rank:0{len(str(count))}d}_{PurePosixPath(found['name']).stem}.png"
        files[f"{PICTURES_DIR}/{name}"] = _picture(pixels, detections_of(found, info), info.classes)
    return files


def _most_interesting(output: str, results: Sequence[PartResult], count: int, least: Mapping[str, float]) -> list[tuple[int, int]]:
    """Return index of the part and row of each image to draw."""
    scores = []
    for result in results:
        for row, image in enumerate(from_parquet(read_bytes(join(output, result.name)), ["classes", "confidences"])):
            found = zip(image["classes"], image["confidences"], strict=True)
            doubtful = sum(number < least[name] + NEAR for name, number in found)
            scores.append((-doubtful, -len(image["confidences"]), result.index, row))
    return [(index, row) for *_, index, row in sorted(scores)[:count]]


def _picture(pixels: np.ndarray, detections: ImageDetections, classes: Sequence[str]) -> bytes:
    """Draw an image, (H, W, 3) uint8 RGB, with its detections and a legend of their classes."""
    height, width = pixels.shape[:2]
    inches = float(np.clip(max(height, width), *LONG_SIDE_PX)) / max(height, width) / DPI
    foot = FOOT / (height * inches + FOOT)
    figure = new_figure(width * inches, height * inches + FOOT, layout=None)
    axes = figure.add_axes((0, foot, 1, 1 - foot))
    draw_image(axes, pixels, detections, 72 * inches)
    draw_detections(axes, detections, classes, 1 / (72 * inches))
    labels, counts = np.unique(detections.labels, return_counts=True)
    handles = [
        Line2D([], [], color=colour(label), linewidth=4, label=f"{classes[label]} {number}")
        for label, number in zip(labels.tolist()[: len(COLOURS)], counts, strict=False)
    ]
    figure.legend(handles=handles, loc="lower center", ncols=max(len(handles), 1), frameon=False, labelcolor=INK, fontsize=11)
    return png_bytes(figure)

"""Engine that detects the one red rectangle of an image, so that tests can check responses without a trained network."""

import threading
import time
from io import BytesIO

import numpy as np
import torch
from PIL import Image, ImageDraw

from yolor_ray import config
from yolor_ray.inference.detect import Detections, least_confidences
from yolor_ray.model.weights import WeightsInfo
from yolor_ray.serve.engine import TimedDetections

SIDE = 160
RECTANGLE = (20, 30, 100, 90)
ALL_TASKS = ("detect", "classify", "embed", "segment", "pose")
IMAGE_CLASSES, PROBABILITIES = ("day", "night", "rain"), (0.25, 0.125, 0.75)
KEYPOINTS = ("corner", "middle")


class RedEngine:
    """Test double of `Engine`; `batches` records the options of each batch, and `detect` waits while `gate` is cleared."""

    name, precision = "red", "float32"

    def __init__(self, classes=("red",), tasks=("detect",)):
        names = {"image_classes": IMAGE_CLASSES, "keypoint_names": KEYPOINTS} if "pose" in tasks else {}
        self.info = WeightsInfo(
            "fake", classes, SIDE, {"AP": 0.5}, "0123456789ab", fused=True, tasks=tasks, thresholds={classes[0]: 0.4}, **names
        )
        self.batches = []
        self.gate = threading.Event()
        self.gate.set()
        self.failure = None

    def detect(self, images):
        self.batches.append([options for _, options in images])
        assert self.gate.wait(20)
        if self.failure:
            raise self.failure
        return [self._detect(view, options) for view, options in images]

    def _detect(self, view, options):
        started = time.perf_counter()
        red = (view.pixels[..., 0] > 180) & (view.pixels[..., 1:].max(axis=2) < 90)
        rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
        found = len(rows) and np.ravel(least_confidences(options.confidence, self.info))[0] <= 0.9
        box = [[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]] if found else np.zeros((0, 4))
        boxes = torch.tensor(np.array(box, np.float32))
        outputs = self._task_outputs(boxes, red) if self.info.tasks == ALL_TASKS else {}
        detections = Detections(boxes, torch.full((len(boxes),), 0.9), torch.zeros(len(boxes), dtype=torch.long), **outputs)
        return TimedDetections(detections, time.perf_counter() - started)

    def _task_outputs(self, boxes, red):
        """Return one prototype, above 0 on red pixels; keypoints in the corner and the middle; one embedding for all objects."""
        corners, middles = boxes[:, :2], (boxes[:, :2] + boxes[:, 2:]) / 2
        keypoints = [torch.cat((xy, torch.full((len(boxes), 1), confidence)), 1) for xy, confidence in ((corners, 0.5), (middles, 1.0))]
        return {
            "keypoints": torch.stack(keypoints, 1),
            "embeddings": torch.eye(64)[[3] * len(boxes)],
            "coefficients": torch.ones(len(boxes), 1),
            "prototypes": torch.tensor(red[None, 2::4, 2::4] * 2.0 - 1),
            "image_labels": torch.tensor(PROBABILITIES),
        }


def draw_image(size=(200, 120), rectangle=RECTANGLE):
    image = Image.new("RGB", size, (40, 60, 90))
    ImageDraw.Draw(image).rectangle((rectangle[0], rectangle[1], rectangle[2] - 1, rectangle[3] - 1), fill=(230, 20, 20))
    return image


def encode_image(image=None, format="JPEG", **options):
    buffer = BytesIO()
    (image or draw_image()).save(buffer, format, **({"quality": 95} if format == "JPEG" else {}) | options)
    return buffer.getvalue()


def serve_settings(**changes):
    return config.ServeConfig(**{"weights": "unused", "max_body_mb": 0.6, "max_megapixels": 1.0, "request_timeout_s": 5.0} | changes)

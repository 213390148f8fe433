"""An engine that finds the one red rectangle of an image, so that boxes can be checked without a trained network."""

import threading
import time
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw

from yolor_ray import config
from yolor_ray.data.decode import decode, letterbox, read_header
from yolor_ray.model.weights import WeightsInfo
from yolor_ray.serve.engine import Found, Prepared

SIDE = 160
RECTANGLE = (20, 30, 100, 90)


class RedEngine:
    name, precision = "red", "float32"

    def __init__(self, classes=("red",)):
        self.info = WeightsInfo("fake", classes, SIDE, {"AP": 0.5}, "0123456789ab", True)
        self.batches = []
        self.open = threading.Event()
        self.open.set()
        self.failure = None

    def prepare(self, data):
        header = read_header(data)
        out = np.empty((SIDE, SIDE, 3), np.uint8)
        return Prepared(out, letterbox(decode(data, fit_px=SIDE, max_pixels=10**6), header.width, header.height, out))

    def detect(self, images):
        self.batches.append([options for _, options in images])
        assert self.open.wait(20)
        if self.failure:
            raise self.failure
        return [self._find(prepared, options) for prepared, options in images]

    def _find(self, prepared, options):
        started = time.perf_counter()
        red = (prepared.pixels[..., 0] > 180) & (prepared.pixels[..., 1:].max(axis=2) < 90)
        rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
        box = [[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]] if len(rows) and options.confidence <= 0.9 else np.zeros((0, 4))
        boxes = prepared.place.to_image(np.array(box, np.float64))
        return Found(boxes, np.full(len(boxes), 0.9), np.zeros(len(boxes), np.int64), time.perf_counter() - started)


def picture(size=(200, 120), rectangle=RECTANGLE):
    image = Image.new("RGB", size, (40, 60, 90))
    ImageDraw.Draw(image).rectangle((rectangle[0], rectangle[1], rectangle[2] - 1, rectangle[3] - 1), fill=(230, 20, 20))
    return image


def encoded(image=None, kind="JPEG", **options):
    buffer = BytesIO()
    (image or picture()).save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}) | options)
    return buffer.getvalue()


def settings(**changes):
    return config.Serve(**{"weights": "unused", "max_body_mb": 0.6, "max_megapixels": 1.0, "request_timeout_s": 5.0} | changes)

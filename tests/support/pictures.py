"""Image files that the decoding tests read."""

import io
import struct

import numpy as np
from PIL import Image


def photo() -> np.ndarray:
    """Make a smooth image without symmetry, 96 x 64, in which a swap of channels changes every colour."""
    rows, columns = np.mgrid[0:64, 0:96]
    return np.stack((columns * 2.6, rows * 3.9, 255 - columns - rows), axis=2).clip(0, 255).astype(np.uint8)


def encode(pixels: np.ndarray | Image.Image, file_format: str, **options) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(file_format, {}) | options
    out = io.BytesIO()
    image.save(out, file_format, **options)
    return out.getvalue()


def with_exif(jpeg: bytes, block: bytes) -> bytes:
    """Insert an EXIF block into a JPEG."""
    body = b"Exif\0\0" + block
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean absolute difference of two images, in grey levels."""
    return float(np.abs(a.astype(float) - b).mean())

"""Image files that the decoding tests read."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from yolor_ray.data.images.decode import decode
from yolor_ray.errors import ImageError

UNDO_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""Pillow's transform of a displayed image into the stored image of an EXIF orientation."""


def stored(displayed: Image.Image, orientation: int) -> Image.Image:
    """Return the image that a file of an EXIF orientation stores."""
    return displayed.transpose(UNDO_ORIENTATION[orientation]) if orientation in UNDO_ORIENTATION else displayed


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


def code_of(data: bytes, **options) -> str:
    """Return the code of the error with which decoding refuses an image."""
    with pytest.raises(ImageError) as caught:
        decode(data, **options)
    return caught.value.code

"""Decode images to pixels as displayed, for training, evaluation and serving alike.

simplejpeg reads JPEG, scaled within the DCT where a small image suffices. OpenCV reads WebP, in less memory and time than Pillow.
Pillow's own plugins read PNG, BMP and TIFF, and what the other two do not.
Colours: grey is expanded; transparency is composited on grey 114; 16-bit samples keep their high byte; floats are refused.
"""

from collections.abc import Callable
from io import BytesIO

import cv2
import numpy as np
import simplejpeg
from PIL import BmpImagePlugin, Image, ImageOps, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from yolor_ray.data.images.header import ImageHeader, read_header, without_exif, without_warnings
from yolor_ray.errors import ImageError

FILL = 114
"""Grey level behind transparent pixels, beside a letterboxed image, and around the tiles of a mosaic."""
MAX_PIXELS = 178_956_970
BITS_PER_SAMPLE = 258
BAND_PIXELS = 2**20
"""Pixels that are converted at a time."""
PNG_SAMPLES = {2: 3, 4: 2, 6: 4}
"""Samples per pixel of a PNG by its colour type, where there is more than one."""
MAX_DEFLATE_RATIO = 1032
"""Largest ratio of the sizes after and before inflating: 258 bytes for 2 bits."""

_PLUGINS: dict[str, Callable[[BytesIO], Image.Image]] = {
    "BMP": BmpImagePlugin.BmpImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
}
_TO_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: image[::-1].transpose(1, 0, 2),
    7: lambda image: image[::-1, ::-1].transpose(1, 0, 2),
    8: lambda image: image[:, ::-1].transpose(1, 0, 2),
}


def decode(data: bytes, *, fit_px: int | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image as displayed: (H, W, 3) uint8 RGB, EXIF orientation applied, first frame only.

    Args:
        data: the encoded image.
        fit_px: the long side after the resize that follows; a larger JPEG may be decoded at a reduced size, never below `fit_px`.
        max_pixels: width x height above which the header is refused, before any pixel is decoded.

    Raises:
        ImageError: `empty_image`, `unsupported_image`, `truncated_image` or `image_too_large`.
    """
    header = read_header(data)
    if header.width * header.height > max_pixels:
        size = f"{header.width} x {header.height} px = {header.width * header.height}"
        raise ImageError("image_too_large", f"found a {header.format} of {size}, expected at most {max_pixels} pixels")
    if header.format == "PNG":
        _refuse_hollow_png(data, header)
    try:
        if header.format == "JPEG":
            pixels = _decode_jpeg(data, header, fit_px)
        else:
            pixels = _decode_webp(data) if header.format == "WEBP" else _decode_pillow(data, header.format)
    except MemoryError as error:
        found = f"found a {header.format} of {header.width} x {header.height} px"
        raise ImageError("image_too_large", f"{found}, expected one that the free memory can hold") from error
    # Pillow applies the orientation of a TIFF itself.
    upright = pixels if header.format == "TIFF" else _TO_UPRIGHT[header.orientation](pixels)
    return np.ascontiguousarray(upright)


def decoded_pixels(header: ImageHeader, fit_px: int | None) -> int:
    """Return the number of pixels that `decode` holds: those that it makes, or all where a JPEG of several scans comes together first."""
    if header.format != "JPEG" or header.has_scans:
        return header.width * header.height
    long_side = max(header.width, header.height)
    return max(1, round(header.width * header.height * (_dct_scaled_long_side(long_side, fit_px) / long_side) ** 2))


def _dct_scaled_long_side(long_side: int, fit_px: int | None) -> int:
    """Return the long side after as many halvings as keep it at `fit_px` or more; other DCT factors are slower than full size."""
    if fit_px is None:
        return long_side
    return next((side for divisor in (8, 4, 2) if (side := -(-long_side // divisor)) >= fit_px), long_side)


def _decode_jpeg(data: bytes, header: ImageHeader, fit_px: int | None) -> np.ndarray:
    long_side = _dct_scaled_long_side(max(header.width, header.height), fit_px)
    stored_width, stored_height = (header.height, header.width) if header.orientation >= 5 else (header.width, header.height)
    sides = {"min_width": long_side} if stored_width >= stored_height else {"min_height": long_side}
    colorspace = "cmyk" if header.components == 4 else "rgb"
    try:
        pixels = simplejpeg.decode_jpeg(data, colorspace, **sides)
    except ValueError as error:
        pixels = _decode_unusual_jpeg(data, colorspace, sides, str(error))
    if pixels.shape[2] == 4:
        # Adobe stores inks inverted, and every writer follows: the remaining light is the product of ink and black.
        pixels = (pixels[..., :3].astype(np.uint16) * pixels[..., 3:] // 255).astype(np.uint8)
    return pixels


def _decode_unusual_jpeg(data: bytes, colorspace: str, sides: dict[str, int], fault: str) -> np.ndarray:
    """Decode a JPEG with a harmless fault: padding before the end marker, or rare chroma subsampling."""
    if fault.endswith("extraneous bytes before marker 0xd9"):
        return simplejpeg.decode_jpeg(data, colorspace, strict=False, **sides)
    if "subsampling" in fault:
        return _decode_pillow(without_exif(data), "JPEG")
    raise ImageError("truncated_image", f"found a truncated or corrupt JPEG of {len(data)} bytes: {fault}")


def _decode_webp(data: bytes) -> np.ndarray:
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise MemoryError from error
    if pixels is None:
        # Pillow says why.
        return _decode_pillow(data, "WEBP")
    if pixels.shape[2] == 3:
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)
    rgb = np.empty((*pixels.shape[:2], 3), np.uint8)
    rows = max(1, BAND_PIXELS // pixels.shape[1])
    for top in range(0, len(rgb), rows):
        rgb[top : top + rows] = _composite(cv2.cvtColor(pixels[top : top + rows], cv2.COLOR_BGRA2RGBA))
    return rgb


def _refuse_hollow_png(data: bytes, header: ImageHeader) -> None:
    """Refuse a PNG too small for its pixels: the decoder would make room for all of them before it finds that most are missing."""
    bits = header.width * header.height * data[24] * PNG_SAMPLES.get(data[25], 1)
    if bits > 8 * MAX_DEFLATE_RATIO * len(data):
        found = f"found a PNG of {header.width} x {header.height} px"
        raise ImageError("truncated_image", f"{found} in {len(data)} bytes, which cannot hold so many pixels")


def _decode_pillow(data: bytes, name: str) -> np.ndarray:
    try:
        with without_warnings():
            image = _PLUGINS[name](BytesIO(data))
            if name == "TIFF":
                image.load()
        image.load()
    except Image.DecompressionBombError as error:
        raise ImageError("image_too_large", f"found a {name} that Pillow refuses: {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError, TypeError, KeyError) as error:
        raise ImageError("truncated_image", f"found a truncated or corrupt {name} of {len(data)} bytes: {error}") from error
    return rgb_pixels(image)


def pixels_of(image: np.ndarray | Image.Image) -> np.ndarray:
    """Return (H, W, 3) uint8 RGB of grey, RGB or RGBA pixels, or of a PIL image as displayed; raises ImageError."""
    if isinstance(image, Image.Image):
        try:
            image = rgb_pixels(ImageOps.exif_transpose(image))
        except (OSError, SyntaxError, ValueError) as error:
            raise ImageError("truncated_image", f"found a PIL image that cannot be decoded: {error}") from error
    channels = 1 if image.ndim == 2 else image.shape[-1] if image.ndim == 3 else 0
    if image.dtype != np.uint8 or channels not in (1, 3, 4):
        found = f"an array of shape {image.shape} and type {image.dtype}"
        raise ImageError("unsupported_image", f"found {found}, expected uint8 of shape (H, W, 3) RGB, (H, W) grey or (H, W, 4) RGBA")
    if image.size == 0 or image.shape[0] * image.shape[1] > MAX_PIXELS:
        raise ImageError("image_too_large" if image.size else "empty_image", f"found {image.shape}, expected 1 to {MAX_PIXELS} pixels")
    if channels == 3:
        return np.ascontiguousarray(image)
    return rgb_pixels(Image.fromarray(image[..., 0] if image.ndim == 3 and channels == 1 else image))


def rgb_pixels(image: Image.Image) -> np.ndarray:
    """Convert a Pillow image to (H, W, 3) uint8 RGB, in bands of rows: conversions of a large image take several times its memory.

    Raises:
        ImageError: `unsupported_image`, where the samples are not of 8 or 16 bits, unsigned.
    """
    width, height = image.size
    rows = max(1, BAND_PIXELS // width)
    if rows >= height:
        return _rgb_band(image, _bits_per_sample(image))
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        pixels[top:bottom] = _rgb_band(image.crop((0, top, width, bottom)), _bits_per_sample(image))
    return pixels


def _bits_per_sample(image: Image.Image) -> int:
    """Return the bits of a grey sample in an image of 16-bit samples."""
    return int(image.tag_v2.get(BITS_PER_SAMPLE, (16,))[0]) if isinstance(image, TiffImagePlugin.TiffImageFile) else 16


def _rgb_band(image: Image.Image, bits: int) -> np.ndarray:
    if image.mode.startswith("I;16"):
        return _rgb_from_16_bits(image, bits)
    if image.has_transparency_data:
        return _composite(np.asarray(image.convert("RGBA")))
    if image.mode in ("RGB", "RGBX", "L", "1", "P", "CMYK", "YCbCr"):
        return np.asarray(image.convert("RGB"))
    raise ImageError("unsupported_image", f"found a {image.format} with samples of mode {image.mode}, expected 8 or 16 bits, unsigned")


def _rgb_from_16_bits(image: Image.Image, bits: int) -> np.ndarray:
    samples = np.asarray(image)
    grey = (samples >> (bits - 8)).astype(np.uint8)
    if "transparency" in image.info:
        grey[samples == image.info["transparency"]] = FILL
    return np.repeat(grey[..., None], 3, axis=2)


def _composite(rgba: np.ndarray) -> np.ndarray:
    """Composite (H, W, 4) uint8 RGBA pixels on grey 114; returns (H, W, 3) uint8."""
    alpha = rgba[..., 3:].astype(np.uint16)
    return ((rgba[..., :3] * alpha + FILL * (255 - alpha) + 127) // 255).astype(np.uint8)

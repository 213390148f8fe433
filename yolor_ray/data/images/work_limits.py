"""Refuse encoded images whose decoding takes far more time or memory than their pixels: repeated scans, tiny chunks, shared strips.

Each limit is above what cameras and programs write, and is checked before anything is decoded. Times are of one core of a server.
"""

import re

from yolor_ray.errors import ImageError

MAX_PIECES = 65_536
"""Strips or tiles of a TIFF, chunks of a PNG or WebP: Pillow takes 3 to 7 µs for each of them, however few pixels they hold."""
MAX_MARKERS = 10_000
"""Segments of a JPEG: a file of nothing but tiny segments must not cost seconds."""
MAX_SCANS = 500
"""Scans of a JPEG, as libjpeg-turbo advises."""
MAX_SCANNED_PIXELS = 1_000_000_000
"""Scans of a JPEG times its pixels, from FEW_SCANS on: a scan of two bytes takes 0.5 ns for each pixel of the image."""
FEW_SCANS = 20
"""Scans that a JPEG of any size may have; libjpeg writes 10, and optimizing programs a few more."""
ARITHMETIC_WORK = 20
"""Scans of Huffman codes that take as long as one of arithmetic codes."""
MAX_RUN_LENGTH_PIXELS = 4_000_000
"""Pixels of a BMP of run lengths, which Pillow reads in Python, 0.1 µs per pixel."""
MAX_RUN_LENGTH_BYTES = 4_000_000
"""Bytes of such a BMP, 0.2 µs per byte."""

START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")
"""Next marker of a JPEG inside of coded data, where 0xff00 is a number and 0xffd0 to 0xffd7 are restarts."""


def too_large(found: str) -> ImageError:
    """Return the error of an image whose decoding would take too much time or memory."""
    return ImageError("image_too_large", f"found {found}")


def refuse_many_scans(data: bytes, first_scan: int, pixels: int, *, is_arithmetic: bool) -> None:
    """Refuse a JPEG of many scans: each goes over the whole image, even if it has no more than two bytes.

    Args:
        data: the encoded image.
        first_scan: position of its first scan.
        pixels: width x height.
        is_arithmetic: whether codes are arithmetic, and not those of Huffman.
    """
    most = most_scans(pixels) // (ARITHMETIC_WORK if is_arithmetic else 1)
    if data.count(b"\xff\xda", first_scan) > most and _has_more_scans(data, first_scan, most):
        raise too_large(f"a JPEG of {pixels} pixels with over {most} scans, expected at most that")


def most_scans(pixels: int) -> int:
    """Return the most scans of a JPEG of so many pixels."""
    return max(FEW_SCANS, min(MAX_SCANS, MAX_SCANNED_PIXELS // max(pixels, 1)))


def _has_more_scans(data: bytes, offset: int, most: int) -> bool:
    """Return True if a JPEG has more scans, or markers without end; what follows its end, and the content of segments, are no scans."""
    scans = 0
    for _ in range(MAX_MARKERS):
        found = _MARKER.search(data, offset)
        marker = found[1][0] if found else END_OF_IMAGE
        if found is None or marker == END_OF_IMAGE:
            return False
        scans += marker == START_OF_SCAN
        if scans > most:
            return True
        # Markers below 0xc0 have no length.
        offset = found.end() + (int.from_bytes(data[found.end() : found.end() + 2], "big") if marker >= 0xC0 else 0)
    return True


def refuse_slow_bmp(data: bytes, codec: str, pixels: int) -> None:
    """Refuse a large BMP of run lengths; `codec` is Pillow's name of the decoder."""
    if codec == "bmp_rle" and (pixels > MAX_RUN_LENGTH_PIXELS or len(data) > MAX_RUN_LENGTH_BYTES):
        expected = f"expected at most {MAX_RUN_LENGTH_PIXELS} pixels and {MAX_RUN_LENGTH_BYTES} bytes, or a BMP without compression"
        raise too_large(f"a BMP of run lengths with {pixels} pixels in {len(data)} bytes, {expected}")

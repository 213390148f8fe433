"""Read the header of an encoded image without decoding a pixel: format by magic bytes, displayed size, EXIF orientation.

JPEG, PNG and WebP headers are read here without an image library. The reader takes microseconds on the training path, and is
safe against decompression bombs and corrupt EXIF blocks. Orientation comes from the EXIF block alone; XMP is not read.
"""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

from PIL import BmpImagePlugin, TiffImagePlugin

from yolor_ray.data.images.tiff_limits import TYPE_BYTES, Order, refuse_slow_tiff, tiff_entries
from yolor_ray.data.images.work_limits import MAX_PIECES, refuse_many_scans, refuse_slow_bmp, too_large
from yolor_ray.errors import ImageError

MAGIC_BYTES = 12
"""Bytes at the start of a file that tell its format."""
ORIENTATION_TAG = 0x0112
SEQUENTIAL, PROGRESSIVE = (0xC0, 0xC1, 0xC9), (0xC2, 0xCA)  # Huffman or arithmetic, 8 or 12 bits; lossless and layered ones are refused
ARITHMETIC = (0xC9, 0xCA)
MAX_PROFILES = 16
"""Colour profiles of a PNG, which has one: Pillow inflates up to a megabyte for each of them."""
MAX_SEGMENTS = 10_000  # a file of nothing but tiny segments must not cost seconds


@dataclass(frozen=True)
class ImageHeader:
    """Format, displayed size and orientation of an encoded image."""

    format: str
    """JPEG, PNG, WEBP, BMP or TIFF."""
    width: int
    """Pixels of the displayed image (EXIF orientation applied)."""
    height: int
    """Pixels of the displayed image (EXIF orientation applied)."""
    orientation: int
    """EXIF orientation 1 to 8; 1 where the EXIF block is absent or corrupt."""
    components: int = 0
    """Colour components of a JPEG; 0 for other formats."""
    has_scans: bool = False
    """Whether a JPEG has several scans, so that its coefficients come together in memory before its pixels."""


def read_header(data: bytes) -> ImageHeader:
    """Read format, displayed size and orientation of an encoded image; decodes no pixel.

    Raises:
        ImageError: `empty_image`, `unsupported_image` (not JPEG, PNG, WebP, BMP or TIFF) or `truncated_image`.
    """
    if not data:
        raise ImageError("empty_image", "found 0 bytes, expected an encoded image")
    image_format = image_format_of(data)
    if image_format is None:
        raise ImageError("unsupported_image", f"found bytes that start with {data[:12]!r}, expected JPEG, PNG, WebP, BMP or TIFF")
    readers = {"JPEG": _jpeg_header, "PNG": _png_header, "WEBP": _webp_header, "BMP": _pillow_header, "TIFF": _pillow_header}
    return readers[image_format](data)


def image_format_of(data: bytes) -> str | None:
    """Return the format of an encoded image by its first MAGIC_BYTES bytes, or None if they are those of no supported format."""
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:2] == b"BM":
        return "BMP"
    return "TIFF" if data[:4] in (b"II*\0", b"MM\0*") else None


def exif_orientation(tiff: bytes) -> int:
    """Read the orientation, 1 to 8, from an EXIF block; 1 where the block has none or is corrupt.

    Only the first directory is read, within the bytes of the block, so a corrupt or looping block costs nothing.
    """
    for order, offset in tiff_entries(tiff):
        if int.from_bytes(tiff[offset : offset + 2], order) == ORIENTATION_TAG:
            orientation = int.from_bytes(tiff[offset + 8 : offset + 10], order)
            return orientation if 1 <= orientation <= 8 else 1
    return 1


def _tiff_is_truncated(tiff: bytes) -> bool:
    """Return True if the first directory, or a value that it points to, lies beyond the end of the file."""
    order: Order = "little" if tiff[:2] == b"II" else "big"
    first = int.from_bytes(tiff[4:8], order)
    entries = int.from_bytes(tiff[first : first + 2], order)
    if len(tiff) < first + 2 + 12 * entries or entries == 0:
        return True
    for order, entry in tiff_entries(tiff):
        field_type, count, offset = (int.from_bytes(tiff[entry + a : entry + b], order) for a, b in ((2, 4), (4, 8), (8, 12)))
        size = TYPE_BYTES.get(field_type, 0) * count
        if size > 4 and offset + size > len(tiff):
            return True
    return False


def _header(name: str, width: int, height: int, orientation: int, components: int = 0, *, has_scans: bool = False) -> ImageHeader:
    if width < 1 or height < 1:
        raise ImageError("unsupported_image", f"found a {name} of {width} x {height} px, expected at least 1 x 1")
    if orientation >= 5:
        width, height = height, width
    return ImageHeader(name, width, height, orientation, components, has_scans)


def _truncated(name: str, size: int) -> ImageError:
    return ImageError("truncated_image", f"found a {name} that ends within its header ({size} bytes)")


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end) of each segment before the first scan."""
    offset = 2
    for _ in range(MAX_SEGMENTS):
        while data[offset : offset + 2] == b"\xff\xff":
            offset += 1
        if data[offset : offset + 1] != b"\xff" or len(data) < offset + 4:
            raise _truncated("JPEG", len(data))
        length = int.from_bytes(data[offset + 2 : offset + 4], "big")
        yield data[offset + 1], offset + 4, offset + 2 + length
        offset += 2 + max(length, 2)
    raise ImageError("unsupported_image", f"found a JPEG with over {MAX_SEGMENTS} header segments")


def _jpeg_header(data: bytes) -> ImageHeader:
    frame_marker, frame, orientation, first_scan = 0, b"", 1, 0
    for marker, start, end in _jpeg_segments(data):
        if marker == 0xDA:
            first_scan = start
            break
        if marker == 0xE1 and data[start : start + 6] == b"Exif\0\0":
            orientation = exif_orientation(data[start + 6 : end])
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame_marker, frame = marker, data[start : start + 6]
            if frame_marker not in SEQUENTIAL + PROGRESSIVE or frame[:1] != b"\x08" or frame[5:] not in b"\x01\x03\x04":
                found = f"a JPEG with frame marker 0x{frame_marker:02x} and frame {frame.hex()}"
                raise ImageError("unsupported_image", f"found {found}, expected 8 bits and 1, 3 or 4 components")
    if len(frame) < 6:
        raise _truncated("JPEG", len(data))
    width, height = int.from_bytes(frame[3:5], "big"), int.from_bytes(frame[1:3], "big")
    # A first scan of all components of a sequential JPEG is its only one.
    has_scans = frame_marker in PROGRESSIVE or data[first_scan : first_scan + 1] < frame[5:6]
    if has_scans:
        refuse_many_scans(data, first_scan - 4, width * height, is_arithmetic=frame_marker in ARITHMETIC)
    return _header("JPEG", width, height, orientation, frame[5], has_scans=has_scans)


def without_exif(data: bytes) -> bytes:
    """Return a JPEG without the segments of EXIF, from which Pillow would read numbers for seconds."""
    parts = [data[:2]]
    for marker, start, end in _jpeg_segments(data):
        if marker == 0xDA:
            parts.append(data[start - 4 :])
            break
        if marker != 0xE1:
            parts.append(data[start - 4 : end])
    return b"".join(parts)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and end of each chunk; raises ImageError after MAX_PIECES chunks."""
    offset = 8
    for _ in range(MAX_PIECES):
        name, end = data[offset + 4 : offset + 8], offset + 8 + int.from_bytes(data[offset : offset + 4], "big")
        yield name, offset + 8, end
        offset = end + 4
        if offset >= len(data) or name == b"IEND":
            return
    raise too_large(f"a PNG with over {MAX_PIECES} chunks, expected at most that")


def _png_header(data: bytes) -> ImageHeader:
    if len(data) < 33:
        raise _truncated("PNG", len(data))
    orientation, profiles = 1, 0
    for name, start, end in _png_chunks(data):
        if name == b"eXIf":
            orientation = exif_orientation(data[start:end].removeprefix(b"Exif\0\0"))
        profiles += name == b"iCCP"
    if profiles > MAX_PROFILES:
        raise too_large(f"a PNG with {profiles} colour profiles, expected one")
    return _header("PNG", int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"), orientation)


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and content of each chunk; raises ImageError after MAX_PIECES chunks."""
    offset, chunks = 12, 0
    while offset + 8 <= len(data):
        chunks += 1
        if chunks > MAX_PIECES:
            raise too_large(f"a WebP with over {MAX_PIECES} chunks, expected at most that")
        length = int.from_bytes(data[offset + 4 : offset + 8], "little")
        yield data[offset : offset + 4], data[offset + 8 : offset + 8 + length]
        offset += 8 + length + length % 2


def _webp_header(data: bytes) -> ImageHeader:
    if len(data) < 30 or len(data) < 8 + int.from_bytes(data[4:8], "little"):
        raise _truncated("WEBP", len(data))
    name, body = next(_webp_chunks(data))
    if name == b"VP8X":
        exif = next((content.removeprefix(b"Exif\0\0") for chunk, content in _webp_chunks(data) if chunk == b"EXIF"), b"")
        orientation = exif_orientation(exif)
        return _header("WEBP", int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1, orientation)
    if name == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return _header("WEBP", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, 1)
    if name == b"VP8 ":
        return _header("WEBP", int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF, 1)
    raise ImageError("unsupported_image", f"found a WEBP whose first chunk is {name!r}, expected VP8, VP8L or VP8X")


def _pillow_header(data: bytes) -> ImageHeader:
    """Read BMP and TIFF with Pillow's plugins directly, because Image.open warns and depends on global settings."""
    image: BmpImagePlugin.BmpImageFile | TiffImagePlugin.TiffImageFile
    if data[:2] != b"BM":
        refuse_slow_tiff(data)
    try:
        with without_warnings():
            if data[:2] == b"BM":
                image = BmpImagePlugin.BmpImageFile(BytesIO(data))
                refuse_slow_bmp(data, image.tile[0].codec_name, image.width * image.height)
                return _header("BMP", *image.size, 1)
            image = TiffImagePlugin.TiffImageFile(BytesIO(data))
    except (SyntaxError, OSError, ValueError, TypeError, KeyError) as error:
        if data[:2] != b"BM" and _tiff_is_truncated(data):
            raise _truncated("TIFF", len(data)) from error
        raise ImageError("unsupported_image", f"found a BMP or TIFF header that cannot be read: {error}") from error
    orientation = image.tag_v2.get(ORIENTATION_TAG, 1)
    orientation = orientation if orientation in range(1, 9) else 1
    width, height = image.size[::-1] if orientation >= 5 else image.size  # Pillow swaps a TIFF's sides by itself
    return _header("TIFF", width, height, orientation)


# `catch_warnings` saves and restores a global list, so two overlapping threads would restore each other's list.
_WARNINGS_LOCK = threading.Lock()


@contextmanager
def without_warnings() -> Iterator[None]:
    """Ignore warnings inside the block; blocks of several threads run one after another, so keep them short."""
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

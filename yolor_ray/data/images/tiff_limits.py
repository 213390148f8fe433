"""Read the directories of a TIFF, and refuse a TIFF whose decoding takes far more time or memory than its pixels.

The directories are read here and not by Pillow, because Pillow leaves out some entries that libtiff reads.
"""

from collections.abc import Iterator
from typing import Literal, TypeAlias

import numpy as np

from yolor_ray.data.images.work_limits import MAX_PIECES, most_scans, too_large

Order: TypeAlias = Literal["little", "big"]

TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
BYTE_TYPES = (1, 2, 6, 7)
"""Types of values that Pillow keeps as bytes, whatever their number."""
INTEGER_TYPES = {1: "u1", 3: "u2", 4: "u4", 6: "u1", 8: "u2", 9: "u4", 13: "u4", 16: "u8", 17: "u8", 18: "u8"}
"""NumPy's types of integers. A negative number becomes a large one, and is refused as such."""
WIDTH, HEIGHT, COMPRESSION, STRIPS, STRIP_BYTES, TILE_WIDTH, TILE_HEIGHT, TILES, TILE_BYTES = 256, 257, 259, 273, 279, 322, 323, 324, 325
PIECE_TAGS = {STRIPS: "strips", STRIP_BYTES: "strips", TILES: "tiles", TILE_BYTES: "tiles"}
"""Tags with one number for each strip or tile of the image."""
DIRECTORY_TAGS = (34_665, 34_853, 40_965)
"""Tags with the position of another directory whose values Pillow reads: those of EXIF, GPS and interoperability."""
JPEG_COMPRESSION = 7
MAX_ENTRIES = 4096
"""Entries of all directories, as libtiff advises: each is read several times."""
MAX_NUMBERS = 400_000
"""Numbers of all other tags together: Pillow takes up to 1.2 µs for each; a colour map or transfer functions of 16 bits have 196,608."""
MAX_TILED_PIXELS = 2**24
"""Pixels of an image with its tiles, which may be larger than the image, unless the image itself has half of them."""
MAX_PIECE_BYTES = 1_000_000_000
"""Bytes of all strips or tiles together; many of them may be the same bytes of the file, as empty tiles often are."""


def tiff_entries(tiff: bytes, first: int | None = None) -> Iterator[tuple[Order, int]]:
    """Yield byte order and offset of each 12-byte entry of a directory that lies within the bytes; `first` is None for the first one."""
    orders: dict[bytes, Order] = {b"II": "little", b"MM": "big"}
    if (order := orders.get(tiff[:2])) is None:
        return
    first = int.from_bytes(tiff[4:8], order) if first is None else first
    entries = int.from_bytes(tiff[first : first + 2], order)
    for offset in range(first + 2, min(first + 2 + 12 * entries, len(tiff) - 11), 12):
        yield order, offset


def refuse_slow_tiff(tiff: bytes) -> None:
    """Refuse a TIFF with too many numbers, far too large tiles, too many strips of the same bytes, or JPEGs of too many scans."""
    _refuse_many_numbers(tiff)
    width, height, tile_width, tile_height = (max([1, *_numbers(tiff, tag)[:1]]) for tag in (WIDTH, HEIGHT, TILE_WIDTH, TILE_HEIGHT))
    tiled_pixels = -(-width // tile_width) * tile_width * (-(-height // tile_height) * tile_height)
    if tiled_pixels > max(MAX_TILED_PIXELS, 2 * width * height):
        raise too_large(f"a TIFF of {width} x {height} px in tiles of {tile_width} x {tile_height} px, expected smaller tiles")
    for starts, sizes in (_numbers(tiff, STRIPS), _numbers(tiff, STRIP_BYTES)), (_numbers(tiff, TILES), _numbers(tiff, TILE_BYTES)):
        _refuse_slow_pieces(tiff, starts, [min(size, len(tiff)) for size in sizes], most_scans(width * height))


def _refuse_many_numbers(tiff: bytes) -> None:
    """Refuse tags of so many numbers that reading them alone takes seconds, those of directories inside of the first one included."""
    directories: list[int | None] = [None]
    numbers = entries = 0
    for directory in directories:
        for order, entry in tiff_entries(tiff, directory):
            tag, kind, count, value = (int.from_bytes(tiff[entry + a : entry + b], order) for a, b in ((0, 2), (2, 4), (4, 8), (8, 12)))
            entries += 1
            if entries > MAX_ENTRIES:
                raise too_large(f"a TIFF with over {MAX_ENTRIES} entries, expected at most that")
            if tag in PIECE_TAGS and count > MAX_PIECES:
                raise too_large(f"a TIFF with {count} {PIECE_TAGS[tag]}, expected at most {MAX_PIECES}")
            numbers += count if tag not in PIECE_TAGS and kind not in BYTE_TYPES else 0
            if numbers > MAX_NUMBERS:
                raise too_large(f"a TIFF with {numbers} numbers in its tags, expected at most {MAX_NUMBERS}")
            if tag in DIRECTORY_TAGS and value not in directories:
                directories.append(value)


def _refuse_slow_pieces(tiff: bytes, starts: list[int], sizes: list[int], scans: int) -> None:
    """Refuse strips or tiles that have far more bytes than the file, or JPEGs of more scans."""
    if sum(sizes) > max(MAX_PIECE_BYTES, 2 * len(tiff)):
        found = f"a TIFF of {len(tiff)} bytes whose strips or tiles have {sum(sizes)}"
        raise too_large(f"{found}, expected at most {MAX_PIECE_BYTES} bytes, or twice those of the file")
    if _numbers(tiff, COMPRESSION) == [JPEG_COMPRESSION]:
        found_scans = sum(tiff.count(b"\xff\xda", start, start + size) for start, size in zip(starts, sizes, strict=False))
        if found_scans > scans * len(starts):
            raise too_large(f"a TIFF with {found_scans} scans in {len(starts)} strips or tiles, expected at most {scans} in each")


def _numbers(tiff: bytes, tag: int) -> list[int]:
    """Return the integers of the first entry of a tag in the first directory; none where they are absent or lie beyond the end."""
    for order, entry in tiff_entries(tiff):
        if int.from_bytes(tiff[entry : entry + 2], order) != tag:
            continue
        kind, count = (int.from_bytes(tiff[entry + a : entry + b], order) for a, b in ((2, 4), (4, 8)))
        size = TYPE_BYTES.get(kind, 0) * count
        start = entry + 8 if size <= 4 else int.from_bytes(tiff[entry + 8 : entry + 12], order)
        if kind not in INTEGER_TYPES or start + size > len(tiff):
            return []
        numbers = np.frombuffer(tiff, ("<" if order == "little" else ">") + INTEGER_TYPES[kind], count, start)
        return [int(number) for number in numbers]
    return []

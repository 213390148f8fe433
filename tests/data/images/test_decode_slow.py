"""Files whose decoding would take far longer than their pixels are refused by their headers, before a decoder sees them."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from test_decode_hostile import png, png_chunk

from pictures import code_of, encode
from yolor_ray.data.images import decode as decode_module
from yolor_ray.data.images import work_limits
from yolor_ray.data.images.decode import decode
from yolor_ray.data.images.header import read_header

SHORT, LONG = 3, 4
PROGRESSIVE, ARITHMETIC, SEQUENTIAL = 0xC2, 0xCA, 0xC0
IDAT = png_chunk(b"IDAT", zlib.compress(bytes(8 * 25)))


@pytest.fixture
def undecoded(monkeypatch):
    """Fail where a decoder begins."""
    for decoder in ("_decode_jpeg", "_decode_webp", "_decode_pillow"):
        monkeypatch.setattr(decode_module, decoder, lambda *_: pytest.fail("decoded"))


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body


def jpeg(frame: int, side: int, components: int, *scans: bytes) -> bytes:
    parts = b"".join(bytes([number, 0x11, 0]) for number in range(components))
    return b"\xff\xd8" + segment(frame, struct.pack(">BHHB", 8, side, side, components) + parts) + b"".join(scans) + b"\xff\xd9"


def scan(*components: int) -> bytes:
    """Return a scan of two bytes, which a decoder continues with zeros over the whole image."""
    chosen = b"".join(bytes([number, 0]) for number in components)
    return segment(0xDA, bytes([len(components)]) + chosen + bytes([1, 63, 0])) + b"\0\0"


@pytest.mark.parametrize(
    ("frame", "side", "scans", "is_refused"),
    [
        (PROGRESSIVE, 7000, 20, False),
        (PROGRESSIVE, 7000, 21, True),
        (PROGRESSIVE, 2000, 250, False),
        (PROGRESSIVE, 2000, 251, True),
        (PROGRESSIVE, 100, 500, False),
        (PROGRESSIVE, 100, 501, True),
        (ARITHMETIC, 7000, 1, False),
        (ARITHMETIC, 7000, 2, True),
        (ARITHMETIC, 100, 26, True),
        (SEQUENTIAL, 7000, 3, False),
        (SEQUENTIAL, 7000, 21, True),
    ],
)
def test_a_jpeg_may_have_the_fewer_scans_the_larger_it_is(undecoded, frame, side, scans, is_refused):
    data = jpeg(frame, side, 3, *[scan(number % 3) for number in range(scans)])
    if is_refused:
        assert code_of(data) == "image_too_large"
    else:
        assert read_header(data).width == side


def test_what_is_no_scan_does_not_count(undecoded):
    hidden = segment(0xE2, b"\xff\xda" * 600) + b"\xff\xd0\xff\xff"
    assert read_header(jpeg(PROGRESSIVE, 100, 3, scan(0), hidden, scan(1)) + scan(2) * 600).width == 100


@pytest.mark.parametrize(
    "between",
    [b"\xff\xff", b"\xff\x01", b"\xff\xd3\0\xff\0", segment(0xE1, b"\xff\xd9"), segment(0xFE, b"\xff")],
    ids=["fill bytes", "marker without length", "restart", "segment with an end marker", "comment that ends with 0xff"],
)
def test_no_scan_is_hidden_from_the_count(undecoded, between):
    assert code_of(jpeg(PROGRESSIVE, 100, 3, *[scan(0) + between] * 501)) == "image_too_large"


def test_a_jpeg_of_nothing_but_markers_after_a_scan_is_refused(undecoded):
    assert code_of(jpeg(PROGRESSIVE, 7000, 3, scan(0), segment(0xE2, b"\xff\xda" * 30), b"\xff\x01" * 20_000)) == "image_too_large"


@pytest.mark.parametrize("pixels", [0, 1, 49_000_000])
def test_the_progressive_jpegs_of_libjpeg_are_within_the_limit(pixels, photo):
    assert encode(photo, "JPEG", progressive=True).count(b"\xff\xda") <= work_limits.most_scans(pixels)


@pytest.mark.parametrize("name", [b"abCd", b"IDAT", b"tEXt"])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_png_of_nothing_but_chunks_is_refused(undecoded, name, is_first):
    chunks = png_chunk(name, b"") * 65_536
    assert code_of(png(8, 8, chunks, IDAT) if is_first else png(8, 8, IDAT, chunks)) == "image_too_large"


def test_a_png_of_many_small_chunks_is_read():
    pixels = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    compressed = zlib.compress(np.pad(pixels.reshape(100, -1), ((0, 0), (1, 0))).tobytes())
    chunks = [png_chunk(b"IDAT", compressed[start : start + 1]) for start in range(len(compressed))]
    assert (decode(png(100, 100, *chunks) + bytes(100)) == pixels).all()


def test_a_png_of_many_colour_profiles_is_refused(undecoded):
    profile = png_chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(1_000_000)))
    assert code_of(png(8, 8, *[profile] * 17, IDAT)) == "image_too_large"


def test_a_webp_of_nothing_but_chunks_is_refused(undecoded):
    image = encode(np.zeros((8, 8, 3), np.uint8), "WEBP", lossless=True)[12:]
    chunks = b"VP8X" + struct.pack("<II", 10, 0) + (7).to_bytes(3, "little") * 2 + image + (b"abcd" + bytes(4)) * 65_536
    assert code_of(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks) == "image_too_large"


def bmp_of_runs(width: int, height: int, runs: bytes) -> bytes:
    start = 54 + 1024
    head = struct.pack("<IIIIiiHHIIiiII", start + len(runs), 0, start, 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return b"BM" + head + bytes(1024) + runs


def test_a_bmp_of_run_lengths_is_read_up_to_a_limit_of_pixels_and_bytes(undecoded):
    assert read_header(bmp_of_runs(2000, 2000, b"\1\5\0\0" * 2000)).height == 2000
    assert code_of(bmp_of_runs(2000, 2001, b"\1\5\0\0" * 2001)) == "image_too_large"
    assert code_of(bmp_of_runs(8, 8, b"\0\2\0\0" * 1_000_000)) == "image_too_large"


def tiff(entries: dict[int, tuple[int, int, int]], content: bytes = b"") -> bytes:
    """Return a grey TIFF with entries (type, count, value or position) by tag; the content begins at START."""
    base = {256: (SHORT, 1, 8), 257: (SHORT, 1, 8), 258: (SHORT, 1, 8), 259: (SHORT, 1, 1), 262: (SHORT, 1, 1), 277: (SHORT, 1, 1)}
    rows = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted((base | entries).items()))
    head = b"II*\0" + struct.pack("<IH", 8, len(rows) // 12) + rows
    return head.ljust(START, b"\0") + content


START = 400


@pytest.mark.parametrize(("width", "height", "is_refused"), [(4096, 4096, False), (4096, 4112, True), (32_768, 32_768, True)])
def test_tiles_far_larger_than_a_tiff_are_refused(undecoded, width, height, is_refused):
    data = tiff({322: (LONG, 1, width), 323: (LONG, 1, height), 324: (LONG, 1, START), 325: (LONG, 1, 64)}, bytes(64))
    if is_refused:
        assert code_of(data) == "image_too_large"
    else:
        assert read_header(data).width == 8


def test_many_small_tiles_far_larger_than_a_tiff_together_are_refused(undecoded):
    tiles = {256: (LONG, 1, 1), 257: (LONG, 1, 65_536), 322: (LONG, 1, 4096), 323: (LONG, 1, 16)}
    assert code_of(tiff(tiles | {324: (LONG, 1, START), 325: (LONG, 1, 64)}, bytes(64))) == "image_too_large"


@pytest.mark.parametrize(("starts", "sizes"), [(273, 279), (324, 325)])
def test_a_tiff_whose_strips_share_its_bytes_a_thousand_times_is_refused(undecoded, starts, sizes):
    count, size = 2000, 1_000_000
    content = struct.pack("<I", START) * count + struct.pack("<I", size) * count + bytes(size)
    rows = {322: (LONG, 1, 8), 323: (LONG, 1, 1)} if starts == 324 else {278: (SHORT, 1, 1)}
    data = tiff(rows | {257: (LONG, 1, count), starts: (LONG, count, START), sizes: (LONG, count, START + 4 * count)}, content)
    assert code_of(data) == "image_too_large"
    few = tiff(rows | {257: (LONG, 1, 900), starts: (LONG, 900, START), sizes: (LONG, 900, START + 4 * count)}, content)
    assert read_header(few).height == 900


def test_one_strip_that_claims_more_bytes_than_the_file_has_is_read():
    assert decode(tiff({273: (LONG, 1, START), 278: (SHORT, 1, 8), 279: (LONG, 1, 4_000_000_000)}, bytes(range(64)))).shape == (8, 8, 3)


def test_a_tiff_of_jpegs_with_many_scans_is_refused(undecoded):
    content = jpeg(PROGRESSIVE, 7000, 1, *[scan(0)] * 21)
    strips = {256: (SHORT, 1, 7000), 257: (SHORT, 1, 7000), 259: (SHORT, 1, 7), 273: (LONG, 1, START), 279: (LONG, 1, len(content))}
    assert code_of(tiff(strips, content)) == "image_too_large"


def test_a_tiff_of_many_sequential_jpegs_is_read(photo):
    buffer = io.BytesIO()
    Image.fromarray(np.tile(photo, (80, 1, 1))).save(buffer, "TIFF", compression="jpeg", tiffinfo={278: 8})
    assert buffer.getvalue().count(b"\xff\xda") > work_limits.MAX_SCANS
    assert decode(buffer.getvalue()).shape == (80 * 64, 96, 3)


@pytest.mark.parametrize("tag", [34_665, 34_853])
def test_numbers_of_exif_in_a_tiff_count(undecoded, tag):
    directory = struct.pack("<H", 2) + struct.pack("<HHII", 40_000, 5, 200_001, START) + struct.pack("<HHII", 40_001, 5, 200_000, START)
    data = tiff({273: (LONG, 1, START), 279: (LONG, 1, 64), tag: (LONG, 1, START)}, directory + bytes(1_700_000))
    assert code_of(data) == "image_too_large"


def test_a_tiff_of_nothing_but_entries_is_refused(undecoded):
    entries = struct.pack("<H", 4100) + bytes(12 * 4100)
    assert code_of(tiff({34_665: (LONG, 1, START)}, entries)) == "image_too_large"
    # Each of a hundred directories names the next one.
    chain = b"".join(struct.pack("<HHHII", 41, 34_665, LONG, 1, START + 494 * (index + 1)) + bytes(480) for index in range(100))
    assert code_of(tiff({34_665: (LONG, 1, START)}, chain)) == "image_too_large"


def test_pillow_reads_no_exif_of_a_jpeg_with_rare_subsampling(monkeypatch, photo):
    exif = Image.Exif()
    exif[0x011A] = 72.0
    data = bytearray(encode(photo, "JPEG", exif=exif, subsampling="4:2:0"))
    data[data.index(b"\xff\xc0") + 11] = 0x31
    read: list[bytes] = []
    monkeypatch.setitem(decode_module._PLUGINS, "JPEG", lambda stream: read.append(stream.getvalue()) or Image.open(stream))
    assert decode(bytes(data)).shape == (64, 96, 3)
    assert len(read) == 1 and b"Exif" in data and b"Exif" not in read[0] and read[0].startswith(b"\xff\xd8\xff")

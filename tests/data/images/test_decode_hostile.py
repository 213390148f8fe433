"""Damaged files, files that are no photos, and decompression bombs are refused; harmless faults are forgiven."""

import io
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from pictures import code_of, distance, encode, with_exif
from yolor_ray.data.images import decode as decode_module
from yolor_ray.data.images.decode import decode
from yolor_ray.data.images.header import read_header


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + png_chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0" + struct.pack("<IH", 8, 65535),
        b"II*\0" + struct.pack("<IHHHII", 8, 1, 0x0112, 3, 1, 77) + struct.pack("<I", 8),
        b"XX*\0" + bytes(40),
    ],
    ids=["empty", "directory outside", "too many entries", "value 77, looping directory", "no byte order"],
)
def test_a_corrupt_exif_block_is_ignored(block, photo):
    data = with_exif(encode(photo, "JPEG"), block)
    assert read_header(data).orientation == 1
    assert distance(decode(data), photo) < 1.5


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused_not_filled_with_grey(name, share):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    data = encode(pixels, name)
    assert code_of(data[: int(len(data) * share)]) == "truncated_image"


def test_a_jpeg_whose_end_was_cut_and_sealed_again_is_refused(photo):
    data = encode(photo, "JPEG")
    assert code_of(data[: len(data) * 8 // 10] + b"\xff\xd9") == "truncated_image"


@pytest.mark.parametrize("tail", [b"garbage" * 100, encode(np.zeros((8, 8, 3), np.uint8), "JPEG")], ids=["garbage", "a second JPEG"])
def test_bytes_after_the_end_of_a_jpeg_are_ignored(tail, photo):
    data = encode(photo, "JPEG")
    assert np.array_equal(decode(data + tail), decode(data))


def test_padding_before_the_end_of_a_jpeg_is_forgiven(photo):
    data = encode(photo, "JPEG")
    assert np.array_equal(decode(data[:-2] + bytes(20) + data[-2:]), decode(data))


@pytest.mark.parametrize(
    "data",
    [b"<html></html>", b"<svg/>", b"%!PS-Adobe-3.0", b"%PDF-1.7", b"GIF89a" + bytes(40), b"\0\0\0 ftypheic", b"RIFF\4\0\0\0WAVE", b"BMW"],
    ids=["html", "svg", "eps", "pdf", "gif", "heic", "wav", "text that starts with BM"],
)
def test_a_file_that_is_no_photo_is_refused(data):
    assert code_of(data) == "unsupported_image"


def test_an_empty_file_has_its_own_code():
    assert code_of(b"") == "empty_image"


def test_a_bomb_is_refused_by_its_header_before_any_decoder_sees_it(monkeypatch):
    for decoder in ("_decode_jpeg", "_decode_webp", "_decode_pillow"):
        monkeypatch.delattr(decode_module, decoder)
    bomb = png(60_000, 60_000, png_chunk(b"IDAT", zlib.compress(bytes(10_000_000))))
    assert code_of(bomb) == "image_too_large"


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_the_limit_of_pixels_holds_for_every_format(name, photo):
    data = encode(photo, name)
    assert decode(data, max_pixels=96 * 64).shape == (64, 96, 3)
    assert code_of(data, max_pixels=96 * 64 - 1) == "image_too_large"


def test_a_bomb_costs_no_memory():
    script = """
import resource, struct, sys
from yolor_ray.data.images.decode import decode
from yolor_ray.errors import ImageError
webp = b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8L" + struct.pack("<I", 18) + b"\\x2f" + b"\\xff" * 17
tiff = b"II*\\0" + struct.pack("<IH", 8, 4)
for tag, value in ((256, 60000), (257, 60000), (262, 1), (273, 8)):
    tiff += struct.pack("<HHII", tag, 4, 1, value)
tiff += bytes(4)
bmp = b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0)
jpeg = b"\\xff\\xd8\\xff\\xc0\\0\\x11\\x08" + struct.pack(">HH", 60000, 60000) + b"\\3\\1\\x11\\0\\2\\x11\\0\\3\\x11\\0\\xff\\xda\\0\\2"
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for bomb in (webp, tiff, bmp, jpeg):
    try:
        decode(bomb)
    except ImageError as error:
        print(error.code)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True)
    *codes, mebibytes = done.stdout.split()
    assert codes == ["image_too_large"] * 4, done.stderr
    assert int(mebibytes) < 50


@pytest.mark.parametrize("name", [b"zTXt", b"iCCP"])
def test_a_giant_compressed_chunk_of_a_png_is_refused_without_inflating_it(name):
    chunk = png_chunk(name, b"k\0\0" + zlib.compress(bytes(100_000_000), 1))
    data = png(8, 8, chunk, png_chunk(b"IDAT", zlib.compress(bytes(8 * 25))))
    tracemalloc.start()
    try:
        assert code_of(data) in ("truncated_image", "image_too_large")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10_000_000


def test_a_progressive_jpeg_of_a_thousand_scans_is_refused(photo):
    data = encode(photo, "JPEG", progressive=True)
    scan = b"\xff\xda\0\x08\1\1\0\0\0\0"
    assert code_of(data[:-2] + scan * 1000 + data[-2:]) == "image_too_large"


def test_decode_hides_the_warnings_of_pillow_and_leaves_the_warning_filters_alone():
    tags = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (262, 3, 1, 1), (270, 2, 1000, 60_000), (273, 4, 1, 100), (279, 4, 1, 64)]
    directory = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    strange = b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(6) + bytes(range(64))
    with pytest.warns(UserWarning, match="larger than file"):
        Image.open(io.BytesIO(strange)).close()
    filters = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(decode, [strange] * 40))
    assert all(np.array_equal(image[..., 0].ravel(), np.arange(64)) for image in images)
    assert warnings.filters == filters

"""Decode what cameras, editors and attackers write; Pillow writes the files, so its own reading is the oracle for plain ones."""

import io
import struct
import subprocess
import sys
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from PIL import Image
from PIL.Image import Transpose

from yolor_ray.data import scenes
from yolor_ray.data.decode import FILL, Letterbox, decode, letterbox, read_header
from yolor_ray.errors import ImageError

LOSSLESS = ("PNG", "WEBP", "BMP", "TIFF")
UNDO = {
    1: None,
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_90,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_270,
}


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """A smooth picture without symmetry, 96 x 64, of which no colour survives a swap of channels."""
    rows, columns = np.mgrid[0:64, 0:96]
    return np.stack((columns * 2.6, rows * 3.9, 255 - columns - rows), axis=2).clip(0, 255).astype(np.uint8)


def encode(pixels: np.ndarray | Image.Image, name: str, **options) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(name, {}) | options
    out = io.BytesIO()
    image.save(out, name, **options)
    return out.getvalue()


def code_of(data: bytes, **options) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, **options)
    return caught.value.code


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b).mean())


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + png_chunk(b"IEND", b"")


def with_exif(jpeg: bytes, block: bytes) -> bytes:
    body = b"Exif\0\0" + block
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_lossless_format_decodes_to_the_pixels_that_were_written(name, photo):
    data = encode(photo, name)
    assert np.array_equal(decode(data), photo)
    header = read_header(data)
    assert (header.format, header.width, header.height, header.orientation) == (name, 96, 64, 1)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": "4:4:4"}, {"subsampling": "4:2:0"}])
def test_a_jpeg_decodes_to_what_pillow_reads(options, photo):
    data = encode(photo, "JPEG", **options)
    with Image.open(io.BytesIO(data)) as image:
        assert distance(decode(data), np.asarray(image)) < 0.5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_of_one_photo_gives_the_same_pixels_and_the_displayed_size(name, orientation, photo):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(photo)
    stored = stored.transpose(UNDO[orientation]) if UNDO[orientation] is not None else stored
    data = encode(stored, name, exif=exif)
    header = read_header(data)
    assert (header.width, header.height, header.orientation) == (96, 64, orientation)
    assert distance(decode(data), photo) < (1.5 if name == "JPEG" else 0.01)


@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_a_scaled_jpeg_is_turned_upright_too(orientation, photo):
    exif = Image.Exif()
    exif[0x0112] = orientation
    large = Image.fromarray(photo).resize((960, 640))
    stored = large.transpose(UNDO[orientation]) if UNDO[orientation] is not None else large
    scaled = decode(encode(stored, "JPEG", exif=exif), fit_px=240)
    assert scaled.shape == (160, 240, 3)
    assert distance(scaled, np.asarray(large.resize((240, 160), Image.Resampling.BOX))) < 1.5


def test_big_endian_exif_is_read(photo):
    block = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    assert read_header(with_exif(encode(photo, "JPEG"), block)).orientation == 6


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
def test_what_follows_the_end_of_a_jpeg_is_ignored(tail, photo):
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
def test_what_is_no_photo_is_refused(data):
    assert code_of(data) == "unsupported_image"


def test_an_empty_file_has_its_own_code():
    assert code_of(b"") == "empty_image"


def test_a_bomb_is_refused_from_its_header_within_50_ms():
    bomb = png(60_000, 60_000, png_chunk(b"IDAT", zlib.compress(bytes(10_000_000))))
    start = time.perf_counter()
    assert code_of(bomb) == "image_too_large"
    assert time.perf_counter() - start < 0.05


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_the_limit_holds_for_every_format(name, photo):
    data = encode(photo, name)
    assert decode(data, max_pixels=96 * 64).shape == (64, 96, 3)
    assert code_of(data, max_pixels=96 * 64 - 1) == "image_too_large"


def test_a_bomb_costs_no_memory():
    script = """
import resource, struct, sys
from yolor_ray.data.decode import decode
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
def test_a_png_with_a_giant_compressed_chunk_is_refused_quickly(name):
    chunk = png_chunk(name, b"k\0\0" + zlib.compress(bytes(100_000_000), 1))
    start = time.perf_counter()
    assert code_of(png(8, 8, chunk, png_chunk(b"IDAT", zlib.compress(bytes(8 * 25))))) in ("truncated_image", "image_too_large")
    assert time.perf_counter() - start < 0.5


def test_a_progressive_jpeg_of_a_thousand_scans_is_refused(photo):
    data = encode(photo, "JPEG", progressive=True)
    scan = b"\xff\xda\0\x08\1\1\0\0\0\0"
    assert code_of(data[:-2] + scan * 1000 + data[-2:]) == "image_too_large"


@pytest.mark.parametrize("colour", [(230, 20, 30), (20, 200, 60), (10, 20, 220), (240, 240, 240), (30, 30, 30)])
def test_cmyk_and_ycck_jpegs_keep_their_colours(colour):
    image = Image.new("RGB", (32, 32), colour)
    inks = image.convert("CMYK")
    assert distance(decode(encode(inks, "JPEG")), np.uint8(colour)) < 3
    assert distance(decode(_ycck(inks)), np.uint8(colour)) < 3


def _ycck(inks: Image.Image) -> bytes:
    """Encode as Photoshop does: inks inverted, their first three turned into YCbCr, Adobe transform 2."""
    cyan, magenta, yellow, black = inks.split()
    ycc = Image.merge("RGB", (cyan, magenta, yellow)).convert("YCbCr").split()
    # Pillow inverts all four planes on writing; Y, Cb and Cr are wanted as they are.
    planes = [plane.point(lambda value: 255 - value) for plane in ycc]
    data = bytearray(encode(Image.merge("CMYK", (*planes, black)), "JPEG"))
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_grey_one_bit_and_palette_are_expanded(mode, photo):
    image = Image.fromarray(photo).convert(mode)
    assert np.array_equal(decode(encode(image, "PNG")), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("name", ["PNG", "WEBP", "TIFF"])
def test_transparent_pixels_show_the_fill_colour(name, photo):
    alpha = np.zeros((64, 96), np.uint8)
    alpha[:, 32:64], alpha[:, 64:] = 128, 255
    decoded = decode(encode(np.dstack((photo, alpha)), name, **({"exact": True} if name == "WEBP" else {})))
    assert (decoded[:, :32] == FILL).all()
    assert distance(decoded[:, 32:64], photo[:, 32:64] * (128 / 255) + FILL * (127 / 255)) < 1
    assert np.array_equal(decoded[:, 64:], photo[:, 64:])


def test_grey_with_alpha_is_composited(photo):
    grey = np.dstack((photo[..., 0], np.where(np.arange(96) < 48, 0, 255) * np.ones((64, 1)))).astype(np.uint8)
    decoded = decode(encode(Image.fromarray(grey, "LA"), "PNG"))
    assert (decoded[:, :48] == FILL).all()
    assert np.array_equal(decoded[:, 48:], np.repeat(photo[:, 48:, :1], 3, axis=2))


@pytest.mark.parametrize("transparency", [1, bytes((255, 0))], ids=["one colour", "alpha per colour"])
def test_a_transparent_palette_is_composited(transparency):
    image = Image.fromarray(np.tile(np.uint8((0, 1)), (4, 8)), "P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    decoded = decode(encode(image, "PNG", transparency=transparency))
    assert (decoded[:, ::2] == (10, 20, 30)).all()
    assert (decoded[:, 1::2] == FILL).all()


@pytest.mark.parametrize("name", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_high_byte(name):
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    grey = decode(encode(ramp, name))
    assert np.array_equal(grey[..., 1], (ramp >> 8).astype(np.uint8))
    _, colour = cv2.imencode(f".{name.lower()}", np.dstack((ramp, ramp // 2, ramp // 4)))
    assert np.array_equal(decode(colour.tobytes())[..., ::-1], (np.dstack((ramp, ramp // 2, ramp // 4)) >> 8).astype(np.uint8))


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_samples_without_a_known_range_are_refused_not_clipped(kind):
    assert code_of(encode(np.full((8, 8), 1000, kind), "TIFF")) == "unsupported_image"


@pytest.mark.parametrize("precision", [12, 16])
def test_a_jpeg_of_more_than_8_bits_is_refused(precision, photo):
    data = bytearray(encode(photo, "JPEG"))
    data[data.index(b"\xff\xc0") + 4] = precision
    assert code_of(bytes(data)) == "unsupported_image"


@pytest.mark.parametrize("name", ["PNG", "WEBP", "TIFF", "MPO"])
def test_only_the_first_frame_is_read(name, photo):
    first, second = Image.fromarray(photo), Image.fromarray(255 - photo)
    decoded = decode(encode(first, name, save_all=True, append_images=[second]))
    assert distance(decoded, photo) < (3 if name in ("WEBP", "MPO") else 0.01)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
@pytest.mark.parametrize("name", ["JPEG", "PNG"])
def test_extreme_shapes_decode_and_fit(name, size):
    data = encode(Image.new("RGB", size, (200, 10, 10)), name)
    out = np.empty((320, 320, 3), np.uint8)
    place = letterbox(decode(data, fit_px=320), *size, out)
    whole = np.array(((0, 0, *size),), float)
    x1, y1, x2, y2 = place.to_input(whole)[0]
    assert 0 <= x1 < x2 <= 320
    assert 0 <= y1 < y2 <= 320
    assert np.abs(out[int(y1) : int(y2), int(x1) : int(x2)].astype(int) - (200, 10, 10)).max() < 6
    assert np.allclose(place.to_image(place.to_input(whole)), whole, atol=1e-3)


@pytest.mark.parametrize(("width", "fit", "expected"), [(640, 320, 320), (640, 321, 640), (640, 100, 160), (640, 10, 80), (200, 320, 200)])
def test_a_jpeg_is_halved_as_often_as_its_long_side_still_covers_the_request(width, fit, expected):
    data = encode(Image.new("RGB", (width, width // 2)), "JPEG")
    assert decode(data, fit_px=fit).shape[1] == expected
    assert decode(data).shape[1] == width


@pytest.mark.parametrize("side", [320, 256, 200])
def test_a_dct_scaled_letterbox_is_close_to_a_full_decode(side):
    data = scenes.scene(3, size_px=800).image
    scaled, full = np.empty((2, side, side, 3), np.uint8)
    letterbox(decode(data, fit_px=side), 800, 800, scaled)
    full[:] = cv2.resize(decode(data), (side, side), interpolation=cv2.INTER_AREA)
    assert distance(scaled, full) < 1.5


def test_a_letterboxed_image_is_centred_on_grey():
    out = np.zeros((64, 64, 3), np.uint8)
    place = letterbox(np.full((20, 40, 3), 200, np.uint8), 40, 20, out)
    assert place == Letterbox(1.6, 0, 16, 40, 20)
    assert (out[16:48] == 200).all()
    assert (out[:16] == FILL).all()
    assert (out[48:] == FILL).all()


@pytest.mark.parametrize("size", [(640, 480), (333, 500), (17, 13), (5000, 7), (320, 320)])
def test_boxes_survive_the_way_into_the_square_and_back(size):
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(0, 1, (100, 2, 2)), axis=1).reshape(100, 4)
    boxes = corners * (size * 2)
    place = letterbox(np.zeros((size[1], size[0], 3), np.uint8), *size, np.empty((320, 320, 3), np.uint8))
    there = place.to_input(boxes)
    assert there.min() >= 0
    assert there.max() <= 320
    assert np.abs(place.to_image(there) - boxes).max() < 1e-3


def test_a_box_in_the_bars_is_clipped_to_the_image():
    place = letterbox(np.zeros((480, 640, 3), np.uint8), 640, 480, np.empty((320, 320, 3), np.uint8))
    assert place.to_image(np.array((-10.0, 0, 400, 320))).tolist() == [0, 0, 640, 480]


def test_boxes_meet_the_pixels_that_they_mark():
    image = np.zeros((300, 500, 3), np.uint8)
    image[100:200, 250:400] = 255
    out = np.empty((320, 320, 3), np.uint8)
    x1, y1, x2, y2 = letterbox(image, 500, 300, out).to_input(np.array((250.0, 100, 400, 200)))
    lit = out[..., 0] > 150
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    assert np.abs(np.array((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)) - (x1, y1, x2, y2)).max() < 1


def test_threads_that_decode_strange_files_leave_the_warning_filters_alone(photo):
    filters = list(warnings.filters)
    strange = encode(photo, "TIFF", exif=Image.Exif(), compression="tiff_lzw") + b"tail"
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(decode, [strange] * 40))
    assert all(np.array_equal(image, photo) for image in images)
    assert warnings.filters == filters

"""Costs of large images are bounded: strips and numbers of a TIFF, and the memory of conversions."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from pictures import code_of
from yolor_ray.data.images import decode as decode_module
from yolor_ray.data.images.decode import decode, decoded_pixels, rgb_pixels
from yolor_ray.data.images.header import read_header
from yolor_ray.data.images.tiff_limits import TYPE_BYTES

STRIPS, STRIP_BYTES, TILES, TILE_BYTES, COLOURS = 273, 279, 324, 325, 320
BYTE, SHORT, LONG = 1, 3, 4


def tiff(tag: int, field_type: int, count: int) -> bytes:
    """Return a grey TIFF of 8 x 8 px with one tag of many numbers, which are all 0."""
    entries = {256: (SHORT, 1, 8), 257: (SHORT, 1, 8), 258: (SHORT, 1, 8), 259: (SHORT, 1, 1), 262: (SHORT, 1, 1), 277: (SHORT, 1, 1)}
    entries |= {STRIPS: (LONG, 1, 8), 278: (SHORT, 1, 8), STRIP_BYTES: (LONG, 1, 64)}
    entries[tag] = (field_type, count, 0)
    start = 8 + 2 + 12 * len(entries) + 4
    entries[tag] = (field_type, count, start)
    rows = b"".join(struct.pack("<HHII", name, *entry) for name, entry in sorted(entries.items()))
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + rows + bytes(4)
    return head + bytes(count * TYPE_BYTES[field_type] + 64)


@pytest.mark.parametrize(
    ("tag", "field_type", "count"),
    [
        (STRIPS, LONG, 1_500_000),
        (STRIPS, LONG, 65_537),
        (STRIPS, SHORT, 65_537),
        (STRIPS, BYTE, 65_537),
        (STRIP_BYTES, LONG, 65_537),
        (TILES, LONG, 65_537),
        (TILE_BYTES, LONG, 65_537),
        (COLOURS, SHORT, 400_001),
        (258, SHORT, 4_000_000),
        (65_000, 12, 400_001),
    ],
)
def test_a_tiff_of_too_many_numbers_is_refused_before_pillow_reads_them(monkeypatch, tag, field_type, count):
    monkeypatch.setattr(decode_module, "_decode_pillow", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr("yolor_ray.data.images.header.TiffImagePlugin.TiffImageFile", lambda *_: pytest.fail("read by Pillow"))
    assert code_of(tiff(tag, field_type, count)) == "image_too_large"


@pytest.mark.parametrize(("tag", "field_type", "count"), [(COLOURS, SHORT, 3 * 65_536), (34_675, 7, 300_000), (700, BYTE, 300_000)])
def test_a_tiff_with_a_large_colour_map_or_profile_is_read(tag, field_type, count):
    assert (read_header(tiff(tag, field_type, count)).width, decode(tiff(tag, field_type, count)).shape) == (8, (8, 8, 3))


def test_a_photo_with_one_row_per_strip_is_read():
    buffer = io.BytesIO()
    Image.new("RGB", (3, 5000), (9, 8, 7)).save(buffer, "TIFF", tiffinfo={278: 1})
    assert (decode(buffer.getvalue()) == (9, 8, 7)).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16"])
@pytest.mark.parametrize("transparent", [False, True])
def test_bands_of_rows_give_the_pixels_of_the_whole(monkeypatch, mode, transparent):
    generator = np.random.default_rng(0)
    if mode == "I;16":
        image = Image.fromarray(generator.integers(0, 65_536, (31, 40)).astype(np.uint16))
    else:
        image = Image.fromarray(generator.integers(0, 256, (31, 40, 4), np.uint8)).convert("RGB").convert(mode)
    if transparent and mode in ("L", "P", "I;16"):
        image.info["transparency"] = int(np.asarray(image)[0, 0])
    whole = rgb_pixels(image)
    monkeypatch.setattr(decode_module, "BAND_PIXELS", 200)
    assert whole.shape == (31, 40, 3) and (rgb_pixels(image) == whole).all()


@pytest.mark.parametrize(("size", "fit_px"), [((4000, 3000), 416), ((4000, 3000), None), ((640, 480), 640), ((3, 3000), 100)])
@pytest.mark.parametrize("name", ["JPEG", "PNG"])
def test_the_decoded_pixels_are_known_before_decoding(size, fit_px, name):
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, name)
    height, width = decode(buffer.getvalue(), fit_px=fit_px).shape[:2]
    assert decoded_pixels(read_header(buffer.getvalue()), fit_px) == pytest.approx(width * height, rel=0.7 if size[0] == 3 else 0.01)


def test_a_progressive_jpeg_holds_all_its_pixels_where_a_small_image_suffices():
    buffer = io.BytesIO()
    Image.new("RGB", (4000, 3000)).save(buffer, "JPEG", progressive=True)
    header = read_header(buffer.getvalue())
    assert decode(buffer.getvalue(), fit_px=416).shape == (375, 500, 3) and decoded_pixels(header, 416) == 4000 * 3000


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"save_all": True}], ids=["lossy", "lossless", "animated"])
def test_a_webp_has_the_pixels_that_pillow_reads(monkeypatch, mode, options):
    generator = np.random.default_rng(0)
    frames = [Image.fromarray(generator.integers(0, 256, (61, 40, 4), np.uint8)).convert(mode) for _ in range(2)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "WEBP", **options | ({"append_images": frames[1:]} if "save_all" in options else {}))
    data = buffer.getvalue()
    by_pillow = decode_module._decode_pillow(data, "WEBP")
    monkeypatch.setattr(decode_module, "BAND_PIXELS", 200)
    monkeypatch.setattr(decode_module, "_decode_pillow", lambda *_: pytest.fail("read by Pillow"))
    assert (decode(data) == by_pillow).all()


def test_a_webp_that_opencv_cannot_read_is_left_to_pillow(monkeypatch):
    buffer = io.BytesIO()
    Image.new("RGB", (9, 8), (1, 2, 3)).save(buffer, "WEBP", lossless=True)
    monkeypatch.setattr(decode_module.cv2, "imdecode", lambda *_: None)
    assert (decode(buffer.getvalue()) == (1, 2, 3)).all()


def test_a_webp_that_does_not_fit_the_memory_is_too_large(monkeypatch):
    def out_of_memory(*_):
        raise decode_module.cv2.error("Insufficient memory")

    buffer = io.BytesIO()
    Image.new("RGB", (9, 8)).save(buffer, "WEBP")
    monkeypatch.setattr(decode_module.cv2, "imdecode", out_of_memory)
    assert code_of(buffer.getvalue()) == "image_too_large"
